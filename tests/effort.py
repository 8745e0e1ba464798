"""How much is tried: everything, or in hypothesis' profile `quick` a part spread over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

QUICK = settings.get_current_profile_name() == "quick"


def sizes() -> Sequence[int]:
    """Numbers of candidates: 0 to 130; quick, all small ones and some on both sides of a border."""
    return [*range(34), 40, 41, 50, 59, 64, 73, 100, 101, 129, 130] if QUICK else range(131)


def examples(count: int) -> settings:
    """So many examples of hypothesis; quick, a sixth of them."""
    return settings(max_examples=max(8, count // 6) if QUICK else count)


def some(items: Sequence[T]) -> Sequence[T]:
    """All items; quick, every third."""
    return items[::3] if QUICK else items
