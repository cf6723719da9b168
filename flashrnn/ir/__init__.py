"""Scalar expressions: what a cell computes for one unit at one time step."""
