"""How many requests a server takes at once, found out from what it refuses."""

from __future__ import annotations

START = 32
"""Requests that may be under way before the server has shown anything."""

_CUT = 0.75
_GROWTH = 0.004
"""How fast the number grows again, per cubed round trip: beyond the last peak +1 after about 5."""

_EVIDENCE = 8.0
"""Successes that make a round trip at least: a server that takes one or two at once would
otherwise be tried with more after every few answers."""


class Window:
    """A number between `least` and `most` that follows the server, as TCP's window does.

    Until the first refusal every success adds one. A refusal cuts the number to three quarters, or
    to what the server still has under way if that is less; those of one round trip are one cut.
    Then it grows along a cubic curve: fast, slowly near the number last refused at, fast again
    (CUBIC, RFC 9438, with time counted in round trips).
    """

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._size = float(max(least, min(most, START)))
        self._peak: float | None = None
        self._trips = self._flat = 0.0
        self._last_before_cut = 0

    @property
    def size(self) -> int:
        """How many requests may be under way now."""
        return int(self._size + 0.5)

    def accepted(self) -> None:
        """The server answered one while as many as allowed were under way."""
        if self._peak is None:
            grown = self._size + 1
        else:
            self._trips += 1 / max(self._size, _EVIDENCE)
            grown = self._peak + _GROWTH * (self._trips - self._flat) ** 3
        self._size = max(self._least, min(self._most, grown))

    def refused(self, number: int, newest: int, taken: int) -> None:
        """The server refused request `number`; `newest` was sent last, `taken` are under way."""
        fewest = float(max(self._least, taken))
        if number > self._last_before_cut:
            self._last_before_cut = newest
            self._peak = min(self._size, fewest)
            self._size = max(self._least, min(_CUT * self._size, fewest))
        elif self._peak is not None:
            self._peak, self._size = min(self._peak, fewest), min(self._size, fewest)
        if self._peak is not None:
            self._trips = 0.0
            self._flat = max(0.0, (self._peak - self._size) / _GROWTH) ** (1 / 3)
