"""Benchmarks: ours, its peers and its floors, side by side. Start with ``benchmarks.run``."""
