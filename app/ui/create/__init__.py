"""The Create tab: its form, its canvas, its handlers."""
