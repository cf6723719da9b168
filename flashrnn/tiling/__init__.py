"""Constraint models, one per schedule: the only home of a tile parameter and its limits."""
