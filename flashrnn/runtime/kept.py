"""Dictionaries of what was worked out once, bounded: ever new lengths must not fill the memory."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 1024


class Kept(dict[K, V]):
    """What follows from a key; all of it is forgotten where there are MOST keys."""

    def keep(self, key: K, value: V) -> V:
        """The value, which is found under the key from now on."""
        if len(self) >= MOST:
            self.clear()
        self[key] = value
        return value
