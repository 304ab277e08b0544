"""The certificate as one page of HTML: the card, and plots. The page loads no other file."""

from html import escape
from typing import Any

from minisd.figures.svg import Curves, plot
from minisd.lab import card
from minisd.lab.certificate import Certificate, number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em;
       color: #1c2126; background: #fff }
h1 { margin-bottom: 0 } p.verdict { font-size: 18px; margin-top: 0 }
table { border-collapse: collapse; width: 100% }
td { padding: 4px 10px 4px 0; border-bottom: 1px solid #e8eaec; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
b.pass { color: #23803c } b.fail { color: #fff; background: #c0392b; padding: 0 6px }
b.measured { color: #667 } td small { color: #667; display: block }
div.plots { display: flex; flex-wrap: wrap; gap: 16px; margin: 1.5em 0 }
div.plots svg { border: 1px solid #e8eaec }
"""

# How a line's curves are drawn, by the line's title.
PLOTS: dict[str, dict[str, Any]] = {
    card.ORDER.title: {
        "title": "Error against the exact solution",
        "x_label": "network calls",
        "y_label": "error",
        "log_x": True,
        "log_y": True,
        "slopes": (1, 2),
    },
    card.DISTANCE.title: {
        "title": "Distance from the data's distribution",
        "x_label": "steps",
        "y_label": "Wasserstein distance W2",
        "log_x": True,
        "log_y": True,
    },
    card.GAIN.title: {
        "title": "Noise gain of img2img",
        "x_label": "strength",
        "y_label": "noise gain",
        "log_y": True,
    },
    card.REFINEMENT.title: {
        "title": "The schedules to their ends",
        "x_label": "steps",
        "y_label": "error at the end",
        "log_x": True,
        "log_y": True,
    },
    card.GUIDED_ERROR.title: {
        "title": "20 steps under guidance",
        "x_label": "guidance",
        "y_label": "error",
        "log_y": True,
    },
}


def page(certificate: Certificate, comparison: Curves | None = None) -> str:
    rows = []
    for line in certificate.lines:
        meaning = f"<small>A failure usually means: {escape(line.meaning)}</small>"
        rows.append(
            f'<tr><td><b class="{line.verdict}">{line.verdict}</b></td>'
            f"<td>{escape(line.check)}{meaning}</td>"
            f'<td class="number">{number(line.value)}</td><td>{escape(line.expected)}</td></tr>'
        )
    plots = [
        plot(curves=line.curves, **PLOTS[line.check]) for line in certificate.lines if line.curves
    ]
    if comparison:
        plots.append(
            plot(
                "On the network: distance to the reference",
                comparison,
                x_label="network calls",
                y_label="distance of latents",
                log_x=True,
                log_y=True,
            )
        )
    name = escape(certificate.name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="generator" content="minisd"><title>{name}: sampler certificate</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{name}</h1>
<p class="verdict">{certificate.verdict}, in {certificate.seconds:.1f} s, by minisd lab</p>
<div class="plots">{"".join(plots)}</div>
<table>{"".join(rows)}</table>
<p>All plots but the comparison on the network are measured on exact models. Their data is one
point, a Gaussian, or a mixture of two normals (0.4 of N(-1, 0.3²), 0.6 of N(0.8, 0.5²)), for which
the best noise prediction and the solution are known.</p>
</body></html>
"""
