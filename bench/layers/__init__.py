"""Suites of single layers: every implementation of a cell, one shape and one kind of call each."""
