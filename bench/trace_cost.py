"""The cost of a trace and a ledger: the same run with and without them, in turn.

    python -m bench.trace_cost [--runs 40]

It measures CPU time of this process, so that other programs matter little, and prints the median
over pairs of runs, a plain one and an observed one.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from PIL import Image

import minisd
from minisd.observe.ledger import Ledger
from minisd.observe.trace import Trace
from minisd.observe.watch import together
from minisd.run import Observer

SKETCH = Path(__file__).parent.parent / "docs" / "pictures" / "fire-sketch.png"


def seconds(draw: Callable[[], None]) -> float:
    start = time.process_time()
    draw()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    n_runs = parser.parse_args().runs
    torch.set_num_threads(1)
    sd = minisd.load()
    picture = Image.open(SKETCH).resize((sd.native_size, sd.native_size))

    def plain(observe: Observer | None = None) -> None:
        minisd.img2img(sd, "fire", picture, steps=30, strength=0.7, seed=1, observe=observe)

    def observed() -> None:
        with Trace(sd) as trace, Ledger(sd) as ledger:
            plain(together(trace, ledger))

    plain()
    observed()
    times = [(seconds(plain), seconds(observed), seconds(plain)) for _ in range(n_runs)]
    cost = median(b / ((a + c) / 2) for a, b, c in times) - 1
    error = median(c / a for a, _, c in times) - 1
    print(f"a run of 21 steps: {1000 * median(a for a, _, _ in times):.0f} ms")
    print(f"with trace, guidance parts and ledger: {100 * cost:+.2f} %")
    print(f"two plain runs differ by {100 * error:+.2f} %, which is the error of this")


if __name__ == "__main__":
    main()
