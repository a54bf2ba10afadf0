"""The toy world: procedural films of a coloured shape that moves, with captions, and what reads them from pixels.

`scene` decides what is to be seen, `draw` makes its pixels, `grammar` its captions, `split` says what training never
sees, `measure` reads attributes from pixels alone. No torch.
"""
