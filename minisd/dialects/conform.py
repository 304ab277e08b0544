"""The conformance kit: another implementation's tensors against the golden files.

A golden file holds what the original programs computed from name-seeded weights, which everyone
can make (tests/golden/README.md). An implementation writes what it computes under the same names,
in a file of the same name, as far as it goes. Each tensor is compared, in the order in which an
error would spread: tokens, text states, noise, levels, single calls, states step by step, pictures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """A kind of tensor, and how far it may be from the golden one, over the largest value."""

    title: str
    endings: tuple[str, ...]  # of the last part of a tensor's name, digits cut off
    tolerance: float
    steps: bool = False  # whether its first axis counts steps


# In the order of the computation. A correct implementation in float32 is within half of these.
KINDS = (
    Kind("tokens", ("tokens", "neg_tokens"), 0.0),
    Kind("weights of tokens", ("weights", "neg_weights"), 1e-6),
    Kind("text states", ("context", "cond", "uncond"), 2e-5),
    Kind(
        "noise", ("noise", "posterior_noise", "eta_noise", "draw", "brownian", "tail", "at"), 1e-6
    ),
    Kind("levels", ("sigmas", "timesteps", "alphas", "alphas_prev"), 1e-5),
    Kind("levels of the calls", ("calls", "t_calls"), 1e-5),
    Kind("network", ("eps",), 2e-5),
    Kind("encoder", ("moments",), 2e-5),
    # On the golden picture the encoder amplifies rounding a hundred times.
    Kind("clean latent", ("init_latent",), 2e-3),
    Kind("decoder", ("decoded",), 2e-5),
    Kind("states", ("x", "denoised"), 2e-4, steps=True),
    Kind("result", ("latent",), 2e-4),
    Kind("picture", ("image",), 0.0),
)
INPUTS = ("vae.image", "vae.latent", "unet.x")
PIXELS_OFF = 10  # values of a picture that may differ, by 1: they lie on a border of rounding


@dataclass(frozen=True)
class Verdict:
    """What a comparison says of one tensor."""

    name: str
    kind: Kind
    agrees: bool
    text: str


def kind_named(name: str) -> Kind | None:
    """The kind of a tensor; None for an input, such as `mask`."""
    if name in INPUTS:
        return None
    last = name.rsplit(".", 1)[-1].rstrip("0123456789")
    if not last:  # cond0.1, schedule.karras.10
        last = name.rsplit(".", 2)[-2].rstrip("0123456789")
        last = "sigmas" if ".schedule." in name else last
    return next((kind for kind in KINDS if last in kind.endings), None)


def compare(name: str, kind: Kind, theirs: Tensor, golden: Tensor) -> Verdict:
    """Whether the tensor agrees, and where it parts if it does not."""

    def verdict(agrees: bool, text: str) -> Verdict:
        return Verdict(name, kind, agrees, text)

    if theirs.shape != golden.shape:
        return verdict(False, f"its shape is {tuple(theirs.shape)}, not {tuple(golden.shape)}")
    a, b = theirs.double(), golden.double()
    if not a.isfinite().all():
        return verdict(False, "it is not finite")
    if kind.title == "tokens":
        wrong = (a != b).nonzero()
        if len(wrong) == 0:
            return verdict(True, "the same")
        row, place = wrong[0].tolist()
        ids = f"{int(a[row, place])}, not {int(b[row, place])}"
        return verdict(False, f"row {row}, place {place}: {ids}; {len(wrong)} differ")
    if kind.title == "picture":
        off = (a - b).abs()
        count, largest = int((off > 0).sum()), int(off.max())
        agrees = count <= PIXELS_OFF and largest <= 1
        return verdict(agrees, f"{count} values differ, by up to {largest}")
    scale = float(b.abs().max()) or 1.0
    if not kind.steps:
        error = float((a - b).abs().max()) / scale
        return verdict(error <= kind.tolerance, f"{error:.1e} of {kind.tolerance:.0e}")
    errors = (a - b).abs().flatten(1).max(dim=1).values / scale
    late = (errors > kind.tolerance).nonzero().flatten()
    if len(late) == 0:
        return verdict(True, f"{float(errors.max()):.1e} of {kind.tolerance:.0e}")
    first = int(late[0])
    where = "before the first step" if first == 0 else f"after step {first}"
    return verdict(
        False, f"parts {where}: {float(errors[first]):.1e}, allowed {kind.tolerance:.0e}"
    )


def check_file(theirs: Path, golden: Path) -> list[Verdict]:
    """A verdict for each tensor of their file, in the order of KINDS. Raises ValueError."""
    their_tensors, _ = read(theirs)
    golden_tensors, metadata = read(golden)
    aliases = json.loads(metadata.get("aliases", "{}"))
    verdicts = []
    for name, values in their_tensors.items():
        known = golden_tensors.get(aliases.get(name, name))
        kind = kind_named(name)
        if known is None:
            verdicts.append(Verdict(name, KINDS[-1], False, "the golden file has no such tensor"))
        elif kind is not None:
            verdicts.append(compare(name, kind, values, known))
    return sorted(verdicts, key=lambda verdict: KINDS.index(verdict.kind))


def missing(theirs: Path, golden: Path) -> list[str]:
    """The golden tensors that their file does not have: aliases and inputs do not count."""
    have, _ = read(theirs)
    return [name for name in read(golden)[0] if name not in have and kind_named(name) is not None]


def read(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def first_cause(verdicts: list[Verdict]) -> str:
    """The first stage that parts: what comes after it may only follow from it."""
    wrong = [verdict for verdict in verdicts if not verdict.agrees]
    if not wrong:
        return "everything that is there agrees"
    return f"look at the {wrong[0].kind.title} first: {wrong[0].name}"
