"""Models that are had, imported, downloaded and given up."""
