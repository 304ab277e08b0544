"""Bugs on purpose: does the certificate find them? `python -m minisd.lab.bugs` tells.

Each bug (bug_list.py) is an edit of the samplers' own source or of what uses them (img2img.py,
guidance.py), of the kinds that the issue threads of this field are full of. Beside the certificate
stands what others' tests would do, a frozen sum and mean of |x|.
"""

import ast
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd.lab.bug_list import BUGS, Bug
from minisd.lab.certificate import certify, theory_of
from minisd.lab.contract import one_picture_sd
from minisd.lab.exact import Pictures
from minisd.lab.subject import Sampler, latent, run
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES, sigma_to_t

FOLDER = Path(minisd.__file__).parent


def source_of(*files: str) -> str:
    """The files as one, without what they import from each other."""
    text = "\n".join((FOLDER / file).read_text() for file in files)
    names = "|".join(file.removesuffix(".py") for file in files)
    return re.sub(rf"^from minisd\.({names}) import (\([^)]*\)|.*)\n", "", text, flags=re.MULTILINE)


def edited(source: str, bug: Bug) -> str:
    """The source with the bug in its function or constant, or in its file."""
    block = source
    if not bug.where.endswith(".py"):
        for node in ast.parse(source).body:
            targets = getattr(node, "targets", [node])
            if (bug.where or bug.sampler) in (
                getattr(t, "name", getattr(t, "id", "")) for t in targets
            ):
                block = ast.get_source_segment(source, node) + "\n"
    olds, news = ([x] if isinstance(x, str) else x for x in (bug.old, bug.new))
    changed = block
    for old, new in zip(olds, news):
        if old not in changed:
            raise LookupError(f"{bug.sampler}, {bug.label}: the source has changed, no {old!r}")
        changed = changed.replace(old, new)
    return source.replace(block, changed)


def with_bug(bug: Bug) -> tuple[Sampler, Callable]:
    """The sampler and img2img, one of them with the bug."""
    sampler, img2img = SAMPLERS[bug.sampler], minisd.img2img
    namespace: dict[str, object] = {"__name__": "minisd.buggy"}
    if bug.where.endswith(".py"):
        source = source_of("guidance.py", "img2img.py")
        exec(compile(edited(source, bug), "buggy", "exec", dont_inherit=True), namespace)
        img2img = namespace["img2img"]
    else:
        source = source_of("step.py", "more_samplers.py", "samplers.py")
        exec(compile(edited(source, bug), "buggy", "exec", dont_inherit=True), namespace)
        sampler = namespace["SAMPLERS"][bug.sampler]
    return partial(sampler, **bug.options), img2img


def certificate_finds(bug: Bug) -> str:
    """The line that fails first, "" if none does."""
    sampler, img2img = with_bug(bug)
    theory = theory_of(bug.sampler, bug.options)
    with patch.object(minisd, "img2img", img2img):
        certificate = certify(sampler, bug.label, theory, stop_at_failure=True)
    return next((line.check for line in certificate.lines if line.verdict == "fail"), "")


def sum_and_mean(sampler: Sampler, img2img: Callable, whole: bool) -> list[float]:
    """What diffusers freezes: sum and mean of |x| after 10 steps, and after the last 3 of them.

    Its dummy model and dummy latent; the second run is its "full loop with noise". With `whole`,
    also of an img2img run, for bugs that are not in the sampler.
    """

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        t = sigma_to_t(sigma)
        return x / (sigma**2 + 1) ** 0.5 * t / (t + 1)

    sample = torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / (4 * 3 * 8 * 8)
    runs = []
    for sigmas in (SCHEDULES["model"](10), SCHEDULES["model"](10)[7:]):
        runs.append(run(sampler, predict_eps, sample * sigmas[0], sigmas)[-1].x_next)
    if whole:
        picture = latent(0.0).float()
        sd = one_picture_sd(Pictures(torch.cat([picture, -picture])), picture)
        blank = Image.new("RGB", (64, 64))
        options = {"steps": 10, "strength": 0.5, "seed": 0}
        runs.append(img2img(sd, "", blank, sampler=sampler, **options).latent)
    return [value.item() for x in runs for value in (x.abs().sum(), x.abs().mean())]


def sum_and_mean_find(bug: Bug) -> bool:
    """Whether these differ by over 1e-3 of themselves from those of the sampler without the bug."""
    whole = bug.where.endswith(".py")
    right = sum_and_mean(partial(SAMPLERS[bug.sampler], **bug.options), minisd.img2img, whole)
    try:
        wrong = sum_and_mean(*with_bug(bug), whole)
    except Exception:
        return True
    return not all(abs(a - b) <= 1e-3 * abs(b) for a, b in zip(wrong, right))


def main() -> int:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = frozen = 0
    for bug in BUGS:
        line, by_sum = certificate_finds(bug), sum_and_mean_find(bug)
        found += bool(line)
        frozen += by_sum
        print(f"{bug.sampler:12} {bug.label:55} {line or 'NOT FOUND':50} {'sum' if by_sum else ''}")
    seconds = time.perf_counter() - begin
    share, share_frozen = found / len(BUGS), frozen / len(BUGS)
    print(f"\n{len(BUGS)} bugs in {seconds:.0f} s: the certificate finds {found} ({share:.1%}),")
    print(f"sum and mean of |x|, frozen before the bug came in, {frozen} ({share_frozen:.1%})")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
