"""Checkpoints: what they are called, where they are, what is in them, and how they get into a module.

`names` and `hub` find the folder, `checkpoint` and `files` read it without torch, `verify` looks for damage, and `load`
fills a module.
"""
