"""A film whose shot list is written while it renders: its prompts are lines that come when they come."""

DEFAULT_OUTPUT = "live.mp4"
"""The place of a film that names none; a stream's recipe is next to it."""
