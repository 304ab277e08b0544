"""The course: checks for its exercises, its figures, and the programs with a mistake in them.

The ten notebooks are in docs/lessons; `minisd lessons FOLDER` copies them.
"""

from typing import Any

from minisd.lessons import programs
from minisd.lessons.checks import Verdict, judge
from minisd.lessons.exercises import EXERCISES
from minisd.lessons.show import Plot, my_drawing, sheet

__all__ = ["EXERCISES", "Plot", "Verdict", "check", "my_drawing", "programs", "sheet"]


def check(name: str, answer: Any) -> Verdict:
    """Whether an answer is right, and if not, why. Raises ValueError for an unknown exercise."""
    if name not in EXERCISES:
        raise ValueError(f"there is no exercise {name!r}; choose from {', '.join(EXERCISES)}")
    return judge(EXERCISES[name], answer)
