"""Passes: each a pure function from expressions to expressions."""
