"""A run as a folder: what is written there, and what is read back."""
