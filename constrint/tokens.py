"""The words and marks of the text form."""

from __future__ import annotations

import re
from typing import NamedTuple

from constrint.errors import ParseError

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)
      | (?P<number>\d+)
      | (?P<name>[A-Za-z_]\w*)
      | (?P<string>"[^"\n]*")
      | (?P<mark>\*\*|//|\.\.|==|!=|<=|>=|[-+*/%^<>()\[\]{},:;|&~])""",
    re.VERBOSE,
)

_WORDS = """
model var step minimize maximize and or not implies divides in table all_different
if min max abs cdiv true false
"""

KEYWORDS = frozenset(_WORDS.split())
"""Words that no variable can be called."""


class Token(NamedTuple):
    """One word or mark and where it stands. ``kind`` is number, name, string, mark or end."""

    kind: str
    text: str
    position: int


def tokens(source: str) -> list[Token]:
    """All tokens of ``source``, and one of kind ``end``."""
    found, position = [], 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            raise error(source, position, f"unexpected character {source[position]!r}")
        kind = match.lastgroup or ""
        if kind != "space":
            found.append(Token(kind, match.group(), position))
        position = match.end()
    found.append(Token("end", "the end", len(source)))
    return found


def error(source: str, position: int, message: str) -> ParseError:
    """A ParseError at ``position``, shown by line and column."""
    before = source[:position]
    line = before.count("\n") + 1
    return ParseError(message, source, line, position - (before.rfind("\n") + 1) + 1)
