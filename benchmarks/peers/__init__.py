"""Drivers of other projects; each runs in that project's own virtual environment."""
