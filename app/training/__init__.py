"""Trainings of the studio: what is asked for, and the process that does it."""
