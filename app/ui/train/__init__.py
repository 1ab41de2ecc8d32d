"""The Train tab: what is prepared, what runs, and what came of it."""
