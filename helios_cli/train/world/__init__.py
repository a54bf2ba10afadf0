"""The toy world, the synthetic data of training: films of moving coloured shapes, with captions.

`scene` draws what a film shows, `draw` its pixels, `captions` its captions, `prompts` the prompts for judging a model;
`reading` reads attributes from pixels alone, and `judge` scores films with them. No torch.
"""
