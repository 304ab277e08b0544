"""What a trace and a ledger cost: the same run with and without, by turns.

    python bench/trace_cost.py [--runs 40]

CPU time of this process, so that what else the machine does counts little; the median over pairs
of runs, of the plain one and the observed one in turn.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image

import minisd
from minisd.trace.ledger import auditing
from minisd.trace.trace import Trace
from minisd.trace.watch import together

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"


def seconds(draw) -> float:
    start = time.process_time()
    draw()
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    runs = parser.parse_args().runs
    torch.set_num_threads(1)
    sd = minisd.load()
    picture = Image.open(SKETCH).resize((sd.native_size, sd.native_size))

    def plain(observe=None) -> None:
        minisd.img2img(sd, "fire", picture, steps=30, strength=0.7, seed=1, observe=observe)

    def observed() -> None:
        trace = Trace()
        with trace.watch(sd.unet), auditing(sd.unet) as ledger:
            plain(together(trace, ledger))

    plain(), observed()
    pairs = [(seconds(plain), seconds(observed), seconds(plain)) for _ in range(runs)]
    on = median(b / ((a + c) / 2) for a, b, c in pairs)
    off = median(c / a for a, _, c in pairs)
    print(f"a run of 21 steps: {1000 * median(a for a, _, _ in pairs):.0f} ms")
    print(f"with trace, guidance parts and ledger: {100 * (on - 1):+.2f} %")
    print(f"two plain runs differ by {100 * (off - 1):+.2f} %, which is the error of this")
