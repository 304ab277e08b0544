"""The certificate: all checks of one sampler, as a card, JSON or a page."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from inspect import signature
from typing import Any

from minisd.lab import contract, formula, paths, quality
from minisd.lab.card import Check, Line
from minisd.lab.subject import Subject, Theory
from minisd.samplers import FACTS, SAMPLERS, Sampler

CHECKS = contract.CHECKS + quality.CHECKS + formula.CHECKS + paths.CHECKS


def theory_of(name: str, options: Mapping[str, Any] | None = None) -> Theory:
    """What is known of one of minisd's samplers with these options. Of others, only their eta."""
    options = options or {}
    if name not in FACTS:
        eta = options.get("eta")
        return Theory(eta=eta, normals=0 if eta == 0 else None)
    facts = FACTS[name]
    defaults = {key: p.default for key, p in signature(SAMPLERS[name]).parameters.items()}
    settings = defaults | dict(options)
    eta = settings.get("eta")
    theory = Theory(
        order=facts.order,
        weak_order=facts.order,
        strong_order=min(facts.order, 1),  # the noise of a step is exact for constant x0 only
        uneven_order=facts.uneven_order or facts.order,
        degrees=facts.degrees,
        memory=facts.memory,
        calls=facts.calls,
        normals=facts.normals if eta != 0 else 0,
        eta=eta,
        max_gain=settings.get("max_gain"),
    )
    theory = replace(theory, **facts.more)
    if not {*options} <= {"eta"}:  # it is known for the formula with its default options
        theory = replace(theory, defect=None)
    if "order" not in settings:
        return theory
    if facts.order > defaults["order"]:  # a corrector adds to the order, see check_uneven
        order = settings["order"] + facts.order - defaults["order"]
        return replace(theory, order=order, uneven_order=None)
    order = settings["order"]  # it needs as many slopes, and integrates one degree less exactly
    degrees = "".join(min(degree, f"{order - 1}") for degree in facts.degrees)
    return replace(theory, order=order, uneven_order=order, degrees=degrees, memory=order > 1)


@dataclass(frozen=True)
class Certificate:
    name: str
    lines: list[Line]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[Line]:
        return [line for line in self.lines if line.verdict == "fail"]

    @property
    def verdict(self) -> str:
        failed = len(self.failures)
        return f"{failed} of {len(self.lines)} lines fail" if failed else "nothing fails"

    def card(self) -> str:
        """As text. Under each failure stands what it usually means."""
        rows = [f"{self.name}: {self.verdict} ({self.seconds:.1f} s)", ""]
        for line in self.lines:
            rows.append(
                f"  {line.verdict:8}  {line.check:48}  {number(line.value):>9}   {line.expected}"
            )
            if line.verdict == "fail":
                rows.append(f"            usually: {line.meaning}")
        return "\n".join(rows)

    def json(self) -> str:
        return json.dumps({**asdict(self), "passed": self.passed}, indent=1)


def number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"


def certify(
    sampler: Sampler,
    name: str = "sampler",
    theory: Theory = Theory(),  # noqa: B008 (frozen)
    checks: list[Callable[[Subject], list[Line]]] = CHECKS,
    stop_at_failure: bool = False,
) -> Certificate:
    """Run the checks on a sampler, a function such as those in samplers.py.

    Give it options with functools.partial. A check in which the sampler raises is a line that fails
    and quotes the error.
    """
    begin = time.perf_counter()
    subject = Subject(sampler, theory)
    lines: list[Line] = []
    for check in checks:
        try:
            lines += check(subject)
        except Exception as error:
            title = check.__name__.replace("check_", "").replace("_", " ") + ": raised an error"
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            lines.append(Check(title, message, expected="no error").line(math.nan, passed=False))
        if stop_at_failure and any(line.verdict == "fail" for line in lines):
            break
    return Certificate(name, lines, time.perf_counter() - begin)
