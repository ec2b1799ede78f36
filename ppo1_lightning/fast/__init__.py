"""Everything that is only speed."""
