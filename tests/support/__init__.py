"""Helpers that several test files share: random checkpoints, renders of them, stand-ins for programs and for a
Hub."""
