"""Line plots as SVG text: no plotting library, no script, nothing to download."""

import math
from html import escape

Curves = dict[str, list[tuple[float, float]]]

COLOURS = ("#1f6fb4", "#d1622b", "#3a8f4d", "#8a5fb0", "#b8972e")  # then dashed
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

    `slopes` adds thin lines of y ~ x^-slope, in log-log.

    What can't be shown (not finite, or not above 0 on a logarithmic axis) is left out.
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
    to_x, x_ticks = axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log_x)
    to_y, y_ticks = axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log_y)
    legend = HEIGHT + 8
    height = legend + 16 * ((len(curves) + 1) // 2) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="11" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{escape(title)}</text>',
    ]
    for value, label in x_ticks:
        x = to_x(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e7ea"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>'
        )
    for value, label in y_ticks:
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


def axis(low: float, high: float, start: float, end: float, log: bool):
    """(value -> pixel, [(value, label), ...])."""
    if log:
        if high < 1.01 * low:  # a constant and its roundings
            low, high = low / 1.5, high * 1.5
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = 1 + len(decades) // 8
        ticks = [(10.0**d, power(d)) for d in decades if d % every == 0]
        if len(decades) <= 3:
            ticks = [(m * 10.0**d, f"{m * 10.0**d:g}") for d in decades for m in (1, 2, 5)]
        ticks = [tick for tick in ticks if low * 0.999 <= tick[0] <= high * 1.001]
        span = math.log10(high / low) or 1.0
        return lambda value: start + (end - start) * math.log10(value / low) / span, ticks
    low = min(low, 0.0) if low < high / 3 else low
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 2))
    step = next(step * m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    ticks = [
        (i * step, f"{i * step:g}") for i in range(math.ceil(low / step), int(high / step) + 1)
    ]
    return lambda value: start + (end - start) * (value - low) / span, ticks


def power(exponent: int) -> str:
    return f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'
