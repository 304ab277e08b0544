"""The certificate: all checks of one sampler, as a card, JSON or a page."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from minisd.lab import contract, quality
from minisd.lab.subject import Line, Sampler, Subject, Theory, judge

CHECKS = contract.CHECKS + quality.CHECKS

# What the papers say of minisd's own, with eta 1 where they have one. In 10 steps of which the last
# ends in sigma 0, two calls a step make 19, and noise for each step that adds some is 9 normals.
THEORY = {
    "k_lms": Theory(4, degrees="0123", memory=True, calls=10, normals=0),
    "ddim": Theory(1, 1, degrees="0000", memory=False, calls=10, normals=10, eta=1.0),
    "plms": Theory(2, uneven_order=1, degrees="1123", memory=True, calls=11, normals=0),
    "k_euler": Theory(1, degrees="0000", memory=False, calls=10, normals=0),
    "k_euler_a": Theory(1, 1, degrees="0000", memory=False, calls=10, normals=9, eta=1.0),
    "k_heun": Theory(2, degrees="1111", memory=False, calls=19, normals=0),
    "k_dpm_2": Theory(2, degrees="0000", memory=False, calls=19, normals=0),
    "k_dpm_2_a": Theory(2, 2, degrees="0000", memory=False, calls=19, normals=9, eta=1.0),
    "k_dpmpp_2": Theory(2, degrees="0000", memory=True, calls=10, normals=0),
    "k_dpmpp_2_a": Theory(2, 2, degrees="0000", memory=False, calls=19, normals=9, eta=1.0),
}


def theory_of(
    name: str, options: dict[str, float] | None = None, order: int | None = None
) -> Theory:
    """What is known of one of minisd's samplers with these options; of others, the order."""
    theory, options = THEORY.get(name, Theory()), options or {}
    if name == "k_lms":  # Adams-Bashforth; of order 1, Euler
        slopes = int(options.get("order", 4))
        degrees = "".join(str(min(i, slopes - 1)) for i in range(4))
        theory = replace(theory, order=slopes, degrees=degrees, memory=slopes > 1)
        theory = replace(theory, max_gain=options.get("max_gain"))
    eta = options.get("eta", 0.0 if name == "ddim" else theory.eta)
    if eta is not None:
        theory = replace(theory, eta=eta, normals=theory.normals if eta else 0)
    return theory if order is None else replace(theory, order=order)


@dataclass(frozen=True)
class Certificate:
    name: str
    lines: list[Line]
    seconds: float

    @property
    def passed(self) -> bool:
        return all(line.verdict != "fail" for line in self.lines)

    def card(self) -> str:
        """As text. What a failure usually means stands under each line that failed."""
        failed = sum(line.verdict == "fail" for line in self.lines)
        verdict = f"{failed} of {len(self.lines)} lines fail" if failed else "nothing fails"
        rows = [f"{self.name}: {verdict} ({self.seconds:.1f} s)", ""]
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

    Its options are given by functools.partial.

    A check that raises is a line that fails, and says what was raised.
    """
    begin = time.perf_counter()
    subject = Subject(sampler, theory)
    lines: list[Line] = []
    for check in checks:
        try:
            lines += check(subject)
        except Exception as error:
            title = check.__name__.replace("check_", "").replace("_", " ")
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            lines.append(judge(f"{title}: raised an error", math.nan, False, "none", what))
        if stop_at_failure and any(line.verdict == "fail" for line in lines):
            break
    return Certificate(name, lines, time.perf_counter() - begin)
