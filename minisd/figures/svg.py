"""Curves as SVG text, for pages: no plotting library, no script, nothing to download."""

import math
from html import escape

from minisd.figures.axes import COLOURS, Axis

Curves = dict[str, list[tuple[float, float]]]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 30, 44


def plot(
    title: str,
    curves: Curves,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    slopes: tuple[int, ...] = (),
) -> str:
    """An <svg> of curves [(x, y), ...] by name.

    `slopes` adds thin lines of y ~ x^-slope, in log-log. Points that cannot be shown are left out:
    those that are not finite, or not above 0 on a logarithmic axis.
    """
    curves = {
        name: [
            (x, y)
            for x, y in points
            if math.isfinite(y) and not (log_y and y <= 0) and not (log_x and x <= 0)
        ]
        for name, points in curves.items()
    }
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return f"<p>{escape(title)}: nothing to show</p>"
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    x_axis, y_axis = axis_of(xs, log_x), axis_of(ys, log_y)

    def to_x(value: float) -> float:
        return LEFT + (WIDTH - RIGHT - LEFT) * x_axis.share(value)

    def to_y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * y_axis.share(value)

    legend = HEIGHT + 8
    height = legend + 16 * ((len(curves) + 1) // 2) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    for value, label in labels(x_axis):
        x = to_x(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e7ea"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>'
        )
    for value, label in labels(y_axis):
        y = to_y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e7ea"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle" fill="#444">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle" fill="#444">{escape(y_label)}</text>'
    )
    first = next(iter(curves.values()))
    for slope in slopes:  # through the first curve's first point
        (x, y), x_end = first[0], max(xs)
        y_end = max(y * (x_end / x) ** -slope, min(ys))
        x_end = x * (y / y_end) ** (1 / slope)
        parts.append(
            f'<path d="M{to_x(x):.1f} {to_y(y):.1f}L{to_x(x_end):.1f} {to_y(y_end):.1f}" '
            'stroke="#999" stroke-dasharray="2 3"/>'
            f'<text x="{to_x(x_end) - 4:.1f}" y="{to_y(y_end) - 4:.1f}" fill="#777" '
            f'text-anchor="end">order {slope}</text>'
        )
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        dash = "" if i < len(COLOURS) else ' stroke-dasharray="5 3"'
        line = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
        )
        parts += [
            f'<circle cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.6" fill="{colour}"/>'
            for x, y in points
        ]
        x, y = LEFT + (i % 2) * 200, legend + 16 * (i // 2)
        parts.append(
            f'<path d="M{x} {y}h20" stroke="{colour}" stroke-width="2"{dash}/>'
            f'<text x="{x + 26}" y="{y + 4}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def axis_of(values: list[float], log: bool) -> Axis:
    low, high = min(values), max(values)
    if log:
        nearly_constant = high < 1.01 * low
        return Axis(low / 1.5, high * 1.5, log) if nearly_constant else Axis(low, high, log)
    low = min(low, 0.0) if low < high / 3 else low
    return Axis(low, high if high > low else low + 1)


def labels(axis: Axis) -> list[tuple[float, str]]:
    ticks = axis.ticks()
    if axis.log and all(math.log10(tick).is_integer() for tick in ticks):
        return [(tick, power(round(math.log10(tick)))) for tick in ticks]
    return [(tick, f"{tick:g}") for tick in ticks]


def power(exponent: int) -> str:
    return f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'
