"""A check says of a learner's answer: not solved yet; wrong, because ...; or right.

An Exercise knows the right answer and what beginners write instead. Both are functions, which are
called with the same cases. So an answer that equals one of the mistakes can be named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from numbers import Number
from typing import Any

import torch
from torch import Tensor

OPEN, WRONG, RIGHT = "not solved yet", "wrong", "right"
COLOURS = {OPEN: "#8a6d00", WRONG: "#b3261e", RIGHT: "#1b6e3c"}
Case = dict[str, Any]  # a function's arguments by name, in their order


@dataclass(frozen=True)
class Verdict:
    """What a check says. A notebook shows it as a coloured line."""

    kind: str  # OPEN, WRONG or RIGHT
    text: str

    def __repr__(self) -> str:
        joint = ", because " if self.kind == WRONG else ": "
        return f"{self.kind}{joint}{self.text}"

    def _repr_html_(self) -> str:
        style = f"border-left:4px solid {COLOURS[self.kind]};padding:4px 10px"
        return f"<div style='{style}'>{escape(repr(self))}</div>"


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    right      the right function, the right value, or None where `diagnose` decides alone
    mistakes   (reason, wrong function or value): each reason follows on "wrong, because"
    cases      the arguments with which functions are compared
    run        (function, case) -> the value to compare, if it is not the function's own result
    diagnose   (answer) -> a reason or None, for answers that no listed mistake equals
    tolerance  absolute for numbers up to 1, relative above
    """

    right: Any
    mistakes: Sequence[tuple[str, Any]]
    praise: str  # follows on "right:"
    cases: Sequence[Case] = ()
    run: Callable[[Callable[..., Any], Case], Any] = lambda function, case: function(*case.values())
    diagnose: Callable[[Any], str | None] = lambda answer: None
    tolerance: float = 1e-9


def judge(exercise: Exercise, answer: Any) -> Verdict:
    if answer is None or answer is ...:
        return Verdict(OPEN, "the answer is still empty")
    if exercise.right is None or callable(exercise.right):
        if not callable(answer):
            return Verdict(WRONG, f"the check needs the function itself, not {short(answer)}")
        return judge_function(exercise, answer)
    if isinstance(answer, tuple) and any(part is None or part is ... for part in answer):
        return Verdict(OPEN, "a part of the answer is still empty")
    if equal(answer, exercise.right, exercise.tolerance):
        return Verdict(RIGHT, exercise.praise)
    for reason, mistake in exercise.mistakes:
        if equal(answer, mistake, exercise.tolerance):
            return Verdict(WRONG, reason)
    return Verdict(WRONG, diagnosis(exercise, answer) or f"{short(answer)} is not the answer")


def diagnosis(exercise: Exercise, answer: Any) -> str | None:
    try:
        return exercise.diagnose(answer)
    except Exception as error:  # whatever a learner's code raises is an answer to judge
        return f"it raises {type(error).__name__}: {error}"


def judge_function(exercise: Exercise, answer: Callable[..., Any]) -> Verdict:
    results = []
    for case in exercise.cases:
        arguments = {name: copied(value) for name, value in case.items()}
        try:
            result = exercise.run(answer, arguments)
        except NotImplementedError:
            return Verdict(OPEN, "the function is still empty")
        except Exception as error:
            return Verdict(WRONG, f"it raises {type(error).__name__}: {error}{place_of(case)}")
        if result is None or result is ...:
            if not results:
                return Verdict(OPEN, "the function returns nothing yet. It must end with return")
            return Verdict(WRONG, f"it returns nothing{place_of(case)}")
        for name, value in arguments.items():
            if isinstance(value, Tensor | list) and not equal(value, case[name], 0):
                return Verdict(WRONG, f"it changes its argument {name}: make a new one instead")
        results.append(result)
    if exercise.right is None:
        reason = diagnosis(exercise, answer)
        return Verdict(WRONG, reason) if reason else Verdict(RIGHT, exercise.praise)
    expected = [exercise.run(exercise.right, case) for case in exercise.cases]
    if equal(results, expected, exercise.tolerance):
        return Verdict(RIGHT, exercise.praise)
    for text, mistake in exercise.mistakes:
        outcomes = [exercise.run(mistake, case) for case in exercise.cases]
        if equal(results, outcomes, exercise.tolerance):
            return Verdict(WRONG, text)
    reason = diagnosis(exercise, answer)
    if reason:
        return Verdict(WRONG, reason)
    rows = zip(exercise.cases, results, expected, strict=True)
    return Verdict(WRONG, next(difference(*row) for row in rows if not equal(*row[1:], 1e-9)))


def difference(case: Case, result: Any, expected: Any) -> str:
    """The first difference, in words, for mistakes that nobody foresaw."""
    if isinstance(expected, Tensor):
        if not isinstance(result, Tensor):
            return f"it returns {short(result)}, not a tensor{place_of(case)}"
        if result.shape != expected.shape:
            shapes = f"{tuple(result.shape)}, not {tuple(expected.shape)}"
            return f"the result has the shape {shapes}{place_of(case)}"
        if not bool(result.isfinite().all()):
            return f"the result is not finite{place_of(case)}"
        rms = float((result.double() - expected.double()).square().mean() ** 0.5)
        return f"the result is {rms:.4g} from the right one (root mean square){place_of(case)}"
    return f"it returns {short(result)}, not {short(expected)}{place_of(case)}"


def equal(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two values agree: numbers, tensors, text, and lists and tuples of them."""
    if isinstance(b, Tensor):
        if not isinstance(a, Tensor) or a.shape != b.shape:
            return False
        return torch.allclose(a.double(), b.double(), tolerance, tolerance, equal_nan=True)
    if isinstance(b, list | tuple):
        is_list = isinstance(a, list | tuple) and len(a) == len(b)
        return is_list and all(equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(b, Number) and not isinstance(b, bool):
        if isinstance(a, Tensor):
            a = a.item() if a.numel() == 1 else None
        return isinstance(a, Number) and abs(a - b) <= tolerance * (1 + abs(b))
    return bool(a == b)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value


def short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.numel() > 1 else f"{value:.6g}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(short, value)) if isinstance(value, list | tuple) else repr(value)
    text = f"({text})" if isinstance(value, tuple) else text
    return text if len(text) < 80 else f"{text[:77]}..."


def place_of(case: Case) -> str:
    """The case's numbers and texts: ` (sigma = 3)`, or nothing."""
    plain = {k: v for k, v in case.items() if isinstance(v, Number | str | list)}
    texts = [f"{name} = {short(value)}" for name, value in plain.items()]
    return f" ({', '.join(texts)})" if texts else ""


def latent(seed: int, scale: float = 1.0, size: int = 4) -> Tensor:
    """(1, 4, size, size) float64, normal: an argument for the cases."""
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1, 4, size, size, generator=rng).double()


def which(letter: str, text: str) -> Callable[[Any], str | None]:
    """A diagnosis of answers (program, number): is it the right program at least?"""

    def diagnose(answer: Any) -> str | None:
        if not isinstance(answer, tuple) or answer[0] not in ("A", "B", "C"):
            return 'the program is a letter: "A", "B" or "C"'
        if answer[0] != letter:
            return f"program {answer[0]} makes no mistake"
        return f"{answer[1]} is not the number, though {letter} is the program: {text}"

    return diagnose
