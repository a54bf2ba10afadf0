"""helios: long video from a prompt, on one machine, from the command line."""

__version__ = "0.2.0"
