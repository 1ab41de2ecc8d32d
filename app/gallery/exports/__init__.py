"""Pictures taken along: one module for each form, and their jobs."""
