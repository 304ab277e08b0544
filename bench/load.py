"""Peak memory and time of loading a checkpoint, for each dtype in the file and each asked for.

    python bench/load.py [FILE]

Without FILE one of SD 1.x's full size is made (4.3 GB on disk). Memory is what the peak resident
set grows by during `minisd.load`, in a process of its own that has imported everything, over the
bytes of the weights in the dtype asked for (the text encoder's in float32).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, sys, time, torch, minisd, warnings
from minisd.tokenizer import Tokenizer
warnings.simplefilter("ignore")
def status(key):
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
minisd.load()  # the small one: code and library buffers are in memory now
Tokenizer()
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, start = status("VmRSS"), time.perf_counter()
sd = minisd.load(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
seconds, peak = time.perf_counter() - start, status("VmHWM") - before
models = (sd.unet, sd.vae, sd.text_encoder)
weights = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
print(json.dumps({"seconds": seconds, "peak": peak, "weights": weights}))
"""


def measure(path: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, "-c", CHILD, str(path), dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make(path: Path, dtype: str) -> None:
    """A file of SD 1.x's names and shapes, in a process of its own."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from safetensors.torch import save_file
import torch
from tests.conftest import manifest
rng = torch.Generator().manual_seed(0)
save_file({{k: 0.02 * torch.randn(s, generator=rng).to(torch.{dtype}) for k, s in manifest().items()
           if "position_ids" not in k and "." in k}}, {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    print(
        f"{'in the file':>12} {'asked for':>10} {'weights':>9} {'peak':>9} {'ratio':>6} {'time':>7}"
    )
    with tempfile.TemporaryDirectory() as folder:
        given = [Path(sys.argv[1])] if len(sys.argv) > 1 else []
        for stored in given or ("float32", "float16"):
            path = stored if given else Path(folder) / f"{stored}.safetensors"
            if not given:
                make(path, stored)
            for dtype in ("float32", "bfloat16", "float16"):
                got = measure(path, dtype)
                ratio = got["peak"] / got["weights"]
                print(
                    f"{stored if not given else path.suffix:>12} {dtype:>10} "
                    f"{got['weights'] / 1e6:6.0f} MB {got['peak'] / 1e6:6.0f} MB "
                    f"{ratio:6.3f} {got['seconds']:5.1f} s"
                )
            if not given:
                path.unlink()


if __name__ == "__main__":
    main()
