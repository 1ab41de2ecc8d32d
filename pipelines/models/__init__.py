"""Weights: fetched, found, verified, converted, loaded."""
