"""Where the marks of a picture stand, in units of its view box; the page draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmrank.report.sample import LARGEST

WIDTH, HEIGHT = 640.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 20.0, 12.0, 24.0
MOST_BARS = 30
_RARE = 0.005  # of the numbers may lie beyond each end of the axis
_FRAME = 10.0
_CLOSE = 1e-9  # of a bin: what rounding moves


class Bar(NamedTuple):
    """A rectangle of a group, and what it says."""

    x: float
    y: float
    width: float
    height: float
    group: str
    told: str


class Tick(NamedTuple):
    """A place on an axis and its label."""

    at: float
    label: str


class Dot(NamedTuple):
    """A point of a group, and what it says."""

    x: float
    y: float
    group: str
    told: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars with two axes; `marks` are upright lines, `beyond` whether values lie off the axis."""

    bars: list[Bar]
    across: list[Tick]
    up: list[Tick]
    marks: list[Tick] = field(default_factory=list)
    beyond: bool = False


def histogram(
    groups: Mapping[str, Sequence[float]], *, whole: bool = False, marks: Iterable[float] = ()
) -> Histogram:
    """The share of each group's numbers in each bin; `whole` numbers have bins of their own, and no
    marks.

    The axis runs over the middle 99 % of all numbers; those beyond are in the first and the last
    bar. At least one group must have a number.
    """
    together = sorted(number for numbers in groups.values() for number in numbers)
    marks = list(marks)
    rare = int(len(together) * _RARE)
    low, high = min([together[rare], *marks]), max([together[-1 - rare], *marks])
    step = _step(low, high, whole)
    first = _bin(low, step)
    count = _bin(high, step) - first + 1
    if not whole and count > 1 and _bin(high, step) * step >= high:
        count -= 1  # the last bin holds its upper edge too, such as a share of 1
    shares = {
        name: _shares(numbers, step, first, count) for name, numbers in groups.items() if numbers
    }
    top = max(max(values) for values in shares.values())
    width = (WIDTH - LEFT - RIGHT) / count
    # A whole number stands in the middle of its bar, any other bound at the bar's edge.
    shift = 0.5 if whole and step == 1 else 0.0
    every = next(n for n in (1, 2, 5, 10) if n >= count / 10)
    across = [
        Tick(LEFT + (i + shift) * width, _written((first + i) * step, step))
        for i in range(count + 1)
        if (first + i) % every == 0 and i + shift <= count
    ]
    drawn = [
        Tick(LEFT + (mark / step - first + shift) * width, _written(mark, step / 10))
        for mark in marks
    ]
    over = together[-1] / step - (first + count)
    beyond = _bin(together[0], step) < first or (over >= 0 if whole else over > _CLOSE)
    return Histogram(_bars(shares, top, width, step, first), across, _up(top), drawn, beyond)


def scatter(points: Sequence[tuple[float, float, str, str]]) -> list[Dot]:
    """Points (x, y, group, what it says) in a view box of WIDTH x WIDTH / 2, to one scale."""
    width, height = WIDTH - 2 * _FRAME, WIDTH / 2 - 2 * _FRAME
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    spread_x, spread_y = max(xs) - min(xs), max(ys) - min(ys)
    fits = [
        room / spread
        for room, spread in ((width, spread_x), (height, spread_y))
        if spread > 1 / LARGEST
    ]
    scale = min(fits, default=0.0)
    # In the middle of the frame.
    left = _FRAME + (width - spread_x * scale) / 2
    top = _FRAME + (height - spread_y * scale) / 2
    return [
        Dot(left + (x - min(xs)) * scale, top + (max(ys) - y) * scale, group, told)
        for x, y, group, told in points
    ]


def _step(low: float, high: float, whole: bool) -> float:
    """The smallest of 1, 2, 5, 10 ... times a power of ten with at most `MOST_BARS` bins."""
    spread = high - low or abs(high) or 1.0
    rough = max(spread / MOST_BARS, abs(high) * 1e-9, 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(
        power * factor
        for factor in (1, 2, 5, 10, 20)
        if _bin(high, power * factor) - _bin(low, power * factor) < MOST_BARS
    )
    return max(step, 1.0) if whole else step


def _bin(number: float, step: float) -> int:
    # Rounded first, as 0.3 / 0.1 is a little less than 3.
    return math.floor(round(number / step, 9))


def _shares(numbers: Sequence[float], step: float, first: int, count: int) -> list[float]:
    bins = [0] * count
    for number in numbers:
        bins[min(max(_bin(number, step) - first, 0), count - 1)] += 1
    return [found / len(numbers) for found in bins]


def _bars(
    shares: Mapping[str, Sequence[float]], top: float, width: float, step: float, first: int
) -> list[Bar]:
    room = HEIGHT - TOP - BOTTOM
    each = width * 0.9 / len(shares)
    bars = []
    for number, (group, values) in enumerate(shares.items()):
        for i, share in enumerate(values):
            if share:
                start = _written((first + i) * step, step)
                told = f"{group}, from {start}: {100 * share:.1f} %"
                tall = room * share / top
                x = LEFT + i * width + width * 0.05 + number * each
                bars.append(Bar(x, HEIGHT - BOTTOM - tall, each, tall, group, told))
    return bars


def _up(top: float) -> list[Tick]:
    """Three places on the axis of the shares."""
    room = HEIGHT - TOP - BOTTOM
    digits = 0 if top >= 0.1 else 1
    return [
        Tick(HEIGHT - BOTTOM - room * part, f"{100 * top * part:.{digits}f} %")
        for part in (0.0, 0.5, 1.0)
    ]


def _written(number: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step)))
    text = f"{number:.{digits}f}" if digits <= 6 and abs(number) < 1e9 else f"{number:.3g}"
    return "0" if float(text) == 0 else text
