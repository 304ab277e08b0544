"""The figure of bench/README.md: the time of minisd and of its engine beside diffusers'.

    python -m bench.peers bench/peers.svg

The numbers are those of the tables in bench/README.md, which is read.
"""

import re
import sys
from html import escape
from pathlib import Path

README = Path(__file__).parent / "README.md"
WIDTH, LEFT, ROW, BAR = 760, 250, 34, 11
COLOURS = {"minisd": "#c1440e", "minisd --engine openvino": "#3b7a8f"}
LARGEST = 1.3  # of the axis, as a share of diffusers' time
Rows = list[tuple[str, dict[str, float]]]  # a label, and shares of diffusers' time


def table(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with this text, without the header."""
    lines = README.read_text().split(first, 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return rows


def seconds(text: str) -> float:
    """`895 ms` or `0.172 s, 116` -> seconds"""
    number, unit = re.match(r"([\d.]+) (ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * (0.001 if unit == "ms" else 1.0)


def groups() -> dict[str, Rows]:
    xeon: Rows = []
    for name, dtype, ours, theirs, *_ in table("| | dtype | minisd | diffusers | ratio | | share"):
        if "512" in name:
            xeon.append((f"{name}, {dtype}", {"minisd": seconds(ours) / seconds(theirs)}))
    epyc: Rows = []
    for name, dtype, ours, engine, theirs, *_ in table("| | dtype | minisd | engine | diffusers"):
        if "512" in name:
            times = {"minisd": seconds(ours), "minisd --engine openvino": seconds(engine)}
            shares = {system: time / seconds(theirs) for system, time in times.items()}
            epyc.append((f"{name}, {dtype}", shares))
    h100: Rows = []
    for name, ours, theirs, *_ in table("| | 1 picture: minisd"):
        short = [key for key in ("CUDA graph", "reduce-overhead", "channels_last") if key in name]
        label = ", ".join(["guided UNet call", *short[:1]])
        h100.append((label, {"minisd": float(theirs) / float(ours)}))
    for name, ours, theirs in table("| whole runs of 20 steps, 1 picture"):
        label = name.replace("`", "")
        h100.append((f"20 steps, {label}", {"minisd": seconds(ours) / seconds(theirs)}))
    return {
        "2 cores with matrix units (Intel Xeon, AMX)": xeon,
        "2 cores without matrix units (AMD EPYC)": epyc,
        "NVIDIA H100, float16, 1 picture": h100,
    }


def figure() -> str:
    y, parts, scale = 78, [], (WIDTH - LEFT - 50) / LARGEST
    for title, rows in groups().items():
        parts.append(f'<text x="16" y="{y}" font-weight="600">{escape(title)}</text>')
        y += 12
        for label, shares in rows:
            parts.append(
                f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            )
            top = y + (ROW - len(shares) * (BAR + 1)) / 2 - 6
            for i, (system, share) in enumerate(shares.items()):
                bar_y = top + i * (BAR + 1)
                parts.append(
                    f'<rect x="{LEFT}" y="{bar_y:.1f}" width="{share * scale:.1f}" height="{BAR}" '
                    f'fill="{COLOURS[system]}"/><text x="{LEFT + share * scale + 5:.1f}" '
                    f'y="{bar_y + 9.5:.1f}" font-size="10" paint-order="stroke" stroke="#fff" '
                    f'stroke-width="4">{share:.2f}</text>'
                )
            y += ROW - 6
        y += 26
    x = LEFT + scale
    line = f'<path d="M{x} 58V{y - 20}" stroke="#555" stroke-dasharray="4 3"/>'
    legend, place = [], LEFT
    for system, colour in COLOURS.items():
        legend.append(
            f'<rect x="{place}" y="32" width="11" height="11" fill="{colour}"/>'
            f'<text x="{place + 16}" y="42">{system}</text>'
        )
        place += 90
    legend.append(f'<text x="{x}" y="42" text-anchor="middle">diffusers = 1</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{y}" fill="#fff"/>'
        f'<text x="16" y="20" font-size="14" font-weight="600">Time at 512x512, as a share of '
        f"diffusers' time (shorter is faster)</text>{''.join(legend)}{line}{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(figure())
