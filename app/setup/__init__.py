"""The environment of the studio: pins, locks, packages. Standard library only."""
