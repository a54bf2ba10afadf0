"""Renders films by several workers: processes of this machine, actors of a Ray cluster, or other helios commands.

`driver` hands out segments, the parts of films between cuts; `worker` renders them; `processes` and `cluster` connect
the two; `claims` let several drivers share the same films. The driver and the pools do not import torch.
"""
