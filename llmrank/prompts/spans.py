"""Where passages and query stand in a filled prompt, to the character.

Looking for their texts could find another place that reads the same, so they are filled in between
marks, which are then taken out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmrank.request import Span

_BEGIN, _END = "\ue000", "\ue001"
"""Characters that Unicode gives to nobody; a text from outside that has them loses them."""

_OUTSIDE = str.maketrans(dict.fromkeys(_BEGIN + _END, "\ufffd"))


def marked(text: str) -> str:
    """A text between marks."""
    return _BEGIN + text.translate(_OUTSIDE) + _END


def unmarked(texts: Sequence[str]) -> tuple[list[str], tuple[Span, ...]]:
    """The texts of a prompt without marks, and where something stood between them, in order."""
    plain: list[str] = []
    found: list[Span] = []
    for turn, text in enumerate(texts):
        kept, start = "", 0
        for part in re.split(f"([{_BEGIN}{_END}])", text):
            if part == _BEGIN:
                start = len(kept)
            elif part == _END:
                found.append(Span(turn, start, len(kept)))
            else:
                kept += part
        plain.append(kept)
    return plain, tuple(found)
