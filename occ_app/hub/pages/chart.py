"""A chart of days as SVG, made on the server: one bar for each day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

WIDTH, HEIGHT = 720.0, 160.0
_GAP = 0.2  # part of a bar's step


@dataclass(frozen=True)
class Bar:
    """The bar of a day, in the units of the chart."""

    day: str
    value: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """Bars from left to right; `top` is the value at the upper edge."""

    bars: tuple[Bar, ...]
    top: float
    width: float = WIDTH
    height: float = HEIGHT


def of_days(values: Mapping[str, float], last: date, count: int) -> Chart:
    """Return the chart of `count` days up to `last`; days without a value are 0."""
    days = [(last - timedelta(days=back)).isoformat() for back in reversed(range(count))]
    top = _round_up(max((values.get(day, 0.0) for day in days), default=0.0))
    step = WIDTH / count
    bars = []
    for index, day in enumerate(days):
        value = max(0.0, values.get(day, 0.0))
        height = round(HEIGHT * value / top, 2) if top else 0.0
        bars.append(
            Bar(day, value, round((index + _GAP / 2) * step, 2), HEIGHT - height, round(step * (1 - _GAP), 2), height)
        )
    return Chart(tuple(bars), top)


def _round_up(value: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 0.0
    scale = 1.0
    while scale < value:
        scale *= 10
    while scale / 10 >= value:
        scale /= 10
    return next(scale * part for part in (0.1, 0.2, 0.5, 1.0) if scale * part >= value * 0.999999)
