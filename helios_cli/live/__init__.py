"""A film whose shot list is written while it renders: its prompts are lines that come when they come."""
