"""Emitters: expressions to source text, one file per target."""
