"""What the two plotters share: chart.py draws pixels, for sheets; svg.py vectors, for pages."""

import math
from dataclasses import dataclass

COLOURS = ("#1f61b4", "#d05412", "#24823c", "#96328c", "#6e6e6e")  # of the curves, in order


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers on the axis; of a logarithmic axis of many decades, powers of ten."""
        if not self.log:
            return round_numbers(self.low, self.high)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        decades = range(first, last + 1)
        if len(decades) <= 3:
            values = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        else:
            every = 1 + len(decades) // 8
            values = [10.0**decade for decade in decades if decade % every == 0]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


def round_numbers(low: float, high: float, beyond: bool = False) -> list[float]:
    """Two to seven multiples of 1, 2 or 5 times a power of ten, within low..high.

    With `beyond`, the first and the last may lie outside, so that all of low..high is between them.
    """
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / 2))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6)
    rounding = 1e-9 if beyond else -1e-9
    first, last = low / step + rounding, high / step - rounding
    if beyond:
        numbers = range(math.floor(first), math.ceil(last) + 1)
    else:
        numbers = range(math.ceil(first), math.floor(last) + 1)
    return [round(number * step, 12) for number in numbers]
