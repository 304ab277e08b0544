"""Mutation test of the certificate: `python -m tests.mutants.bugs` prints how many bugs it detects.

Each bug (bug_list.py) is an edit of the source of the samplers, or of what calls them (img2img.py,
run.py, guidance.py). The bugs are of the kinds that this field's bug reports describe. For
comparison, each is also tested as other projects do: with a frozen sum and mean of |x|.
"""

import ast
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import minisd
from minisd import Decoded, Encoded, Noised, Result, Step
from minisd.lab import contract
from minisd.lab.certificate import certify, theory_of
from minisd.lab.exact import Pictures, as_sd
from minisd.lab.subject import final_latent, latent
from minisd.samplers import SAMPLERS, Sampler
from minisd.schedule import SCHEDULES, sigma_to_t

from .bug_list import BUGS, Bug
from .more_bugs import MORE_BUGS

FOLDER = Path(minisd.__file__).parent
SAMPLER_FILES = (
    "samplers.py",
    "more_samplers/guarded_lms.py",
    "more_samplers/multistep.py",
    "more_samplers/stochastic.py",
    "more_samplers/cfg_pp.py",
)
CALLER_FILES = ("guidance.py", "run.py", "img2img.py")
# The checks recognize events by their types, so mutants must use the real ones.
TYPES = {"Step": Step, "Encoded": Encoded, "Noised": Noised, "Decoded": Decoded, "Result": Result}


def with_bug(bug: Bug) -> tuple[Sampler, Callable[..., Result]]:
    """The sampler and img2img, one of them with the bug."""
    sampler, img2img = SAMPLERS[bug.sampler], minisd.img2img
    if bug.where.endswith(".py"):
        img2img = functions_with(bug, CALLER_FILES)["img2img"]
    else:
        sampler = functions_with(bug, SAMPLER_FILES)[bug.sampler]
    return partial(sampler, **bug.options), img2img


def functions_with(bug: Bug, files: tuple[str, ...]) -> dict[str, Any]:
    """What these files define, with the bug. The files become one, to use each other's mutants."""
    sources = {file: (FOLDER / file).read_text(encoding="utf-8") for file in files}
    source = "\n".join(sources.values())
    block = sources[bug.where] if bug.where in files else definition(source, bug)
    source = source.replace(block, edited(block, bug))
    modules = "|".join(file.removesuffix(".py").replace("/", r"\.") for file in files)
    own_import = rf"^from minisd\.({modules}) import (\([^)]*\)|.*)\n"
    source = re.sub(own_import, "", source, flags=re.MULTILINE)
    namespace: dict[str, Any] = {"__name__": "minisd.mutant"}
    exec(compile(source, "mutant", "exec", dont_inherit=True), namespace)
    namespace.update(TYPES)
    return namespace


def definition(source: str, bug: Bug) -> str:
    """The source of the function or constant that the bug is in."""
    name = bug.where or bug.sampler
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        if name in (getattr(target, "name", getattr(target, "id", "")) for target in targets):
            return f"{ast.get_source_segment(source, node)}\n"
    raise LookupError(f"{bug.sampler}, {bug.label}: the source has no {name}")


def edited(block: str, bug: Bug) -> str:
    edits = [(bug.old, bug.new)] if isinstance(bug.old, str) else zip(bug.old, bug.new, strict=True)
    for old, new in edits:
        if old not in block:
            raise LookupError(f"{bug.sampler}, {bug.label}: the source has no {old!r}")
        block = block.replace(old, new)
    return block


def failed_check(bug: Bug) -> str:
    """The first line of the certificate that fails; "" if none does."""
    sampler, img2img = with_bug(bug)
    theory = theory_of(bug.sampler, bug.options)
    with patch.object(contract, "img2img", img2img):
        certificate = certify(sampler, bug.label, theory, stop_at_failure=True)
    return certificate.failures[0].check if certificate.failures else ""


def changes_frozen_sums(bug: Bug) -> bool:
    """Whether the sums and means change by more than 1e-3 of their values."""
    with_img2img = bug.where.endswith(".py")
    correct_sampler = partial(SAMPLERS[bug.sampler], **bug.options)
    correct = sums_and_means(correct_sampler, minisd.img2img, with_img2img)
    try:
        mutant = sums_and_means(*with_bug(bug), with_img2img)
    except Exception:
        return True
    return not all(abs(a - b) <= 1e-3 * abs(b) for a, b in zip(mutant, correct, strict=True))


def sums_and_means(
    sampler: Sampler, img2img: Callable[..., Result], with_img2img: bool
) -> list[float]:
    """The numbers that diffusers freezes: sum and mean of |x| after 10 steps, and after the last 3.

    Its dummy model and dummy latent; the second run is its "full loop with noise". For bugs outside
    the sampler, also of a run of img2img.
    """

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        t = sigma_to_t(sigma)
        return x / (sigma**2 + 1) ** 0.5 * t / (t + 1)

    sample = torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / (4 * 3 * 8 * 8)
    latents = []
    for sigmas in (SCHEDULES["model"](10), SCHEDULES["model"](10)[7:]):
        latents.append(final_latent(sampler, predict_eps, sample * sigmas[0], sigmas))
    if with_img2img:
        picture = latent(0.0).float()
        sd = as_sd(Pictures(torch.cat([picture, -picture])))
        settings = {"sampler": sampler, "steps": 10, "strength": 0.5, "seed": 0}
        latents.append(img2img(sd, "", picture, **settings).latent)
    return [value.item() for x in latents for value in (x.abs().sum(), x.abs().mean())]


def main() -> int:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    detected = detected_by_sums = 0
    bugs = BUGS + MORE_BUGS
    for bug in bugs:
        check, sums_change = failed_check(bug), changes_frozen_sums(bug)
        detected += 1 if check else 0
        detected_by_sums += 1 if sums_change else 0
        sums = "sums" if sums_change else ""
        print(f"{bug.sampler:13} {bug.label:54} {check or 'NOT DETECTED':47} {sums}".rstrip())
    seconds = time.perf_counter() - begin
    share = detected / len(bugs)
    print(
        f"\n{len(bugs)} bugs in {seconds:.0f} s: the certificate detects {detected} ({share:.1%})."
    )
    share_of_sums = detected_by_sums / len(bugs)
    print(f"A frozen sum and mean of |x| detect {detected_by_sums} ({share_of_sums:.1%}).")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
