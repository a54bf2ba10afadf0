"""Checkpoints: finding, downloading, opening, checking, loading and streaming them.

`names` and `hub` find the folder, `checkpoint` and `files` read it without torch, `report` describes and checks it,
`load` fills a module from `reader`, and `offload` streams blocks as `placement` says.
"""
