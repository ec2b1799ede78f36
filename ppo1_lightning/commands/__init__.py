"""The command line: a file for each command, see ``__main__``."""
