"""The algorithms as Lightning modules, and what they learn with."""
