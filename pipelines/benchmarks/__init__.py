"""Our painting held against stock diffusers."""
