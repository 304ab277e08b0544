"""The certificate as one page of HTML: the card, and plots. Nothing is loaded from elsewhere."""

from html import escape

from minisd.lab.certificate import Certificate, number
from minisd.lab.plot import Curves, plot

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

# Which plot is made of a line's curves: by the beginning of its name.
PLOTS = {
    "order": dict(x_label="network calls", y_label="error", log_x=True, log_y=True, slopes=(1, 2)),
    "W2": dict(x_label="steps", y_label="Wasserstein distance W2", log_x=True, log_y=True),
    "noise gain": dict(x_label="strength", y_label="noise gain", log_y=True),
    "error with": dict(x_label="steps", y_label="error, grid to its end", log_x=True, log_y=True),
    "guidance": dict(x_label="guidance", y_label="error", log_y=True),
}
TITLES = {
    "order": "Error against the exact solution",
    "W2": "Distance from the data's distribution",
    "noise gain": "Noise gain of img2img",
    "error with": "The grids as they are",
    "guidance": "20 steps under guidance",
}


def page(certificate: Certificate, comparison: Curves | None = None) -> str:
    failed = sum(line.verdict == "fail" for line in certificate.lines)
    rows = []
    for line in certificate.lines:
        why = f"<small>A failure usually means: {escape(line.meaning)}</small>"
        rows.append(
            f'<tr><td><b class="{line.verdict}">{line.verdict}</b></td>'
            f"<td>{escape(line.check)}{why}</td>"
            f'<td class="number">{number(line.value)}</td><td>{escape(line.expected)}</td></tr>'
        )
    plots = []
    for line in certificate.lines:
        start = next((start for start in PLOTS if line.check.startswith(start)), None)
        if line.curves and start:
            plots.append(plot(TITLES[start], line.curves, **PLOTS[start]))
    if comparison:
        plots.append(
            plot(
                "On the network: distance to 1000 steps",
                comparison,
                "network calls",
                "distance of latents",
                log_x=True,
                log_y=True,
            )
        )
    verdict = f"{failed} of {len(certificate.lines)} lines fail" if failed else "nothing fails"
    name = escape(certificate.name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: sampler certificate</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>{name}</h1>
<p class="verdict">{verdict}, in {certificate.seconds:.1f} s, by minisd lab</p>
<div class="plots">{"".join(plots)}</div>
<table>{"".join(rows)}</table>
<p>All but the last plot, if it is there, is measured on exact models: data that is one point, a
Gaussian, or a mixture of two normals (0.4 of N(-1, 0.3²), 0.6 of N(0.8, 0.5²)), whose noise
prediction and whose solution are known.</p>
</body></html>
"""
