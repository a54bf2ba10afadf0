"""Checkpoints: what they are called, where they are, what is in them, and how they get into a module.

`names` and `hub` find the folder, `checkpoint` and `files` read it without torch, `verify` looks for damage, `load`
fills a module by what `reader` reads, and `offload` streams blocks; `placement` says which.
"""
