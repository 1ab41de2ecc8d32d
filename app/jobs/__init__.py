"""Jobs: their order, whose turn it is, and what outlives a restart."""
