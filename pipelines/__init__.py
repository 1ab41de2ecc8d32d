"""From a request to pictures. Importing this package alone loads nothing heavy."""
