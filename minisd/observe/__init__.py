"""What can be recorded and measured of a run. All observers are used in one way:

with Trace(sd) as trace:
    img2img(sd, "fire", "drawing.png", observe=trace)
"""

from minisd.observe.attention_maps import AttentionMaps
from minisd.observe.finite import NotFinite, stop_at_nan
from minisd.observe.ledger import Ledger, NoiseMismatch
from minisd.observe.plan import Plan, plan, steps_after
from minisd.observe.trace import Trace
from minisd.observe.trace_file import load_trace, save_trace
from minisd.observe.watch import together

__all__ = [
    "AttentionMaps",
    "Ledger",
    "NoiseMismatch",
    "NotFinite",
    "Plan",
    "Trace",
    "load_trace",
    "plan",
    "save_trace",
    "steps_after",
    "stop_at_nan",
    "together",
]
