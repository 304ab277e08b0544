"""The exercises of all lessons, by name; a file for each lesson."""

from minisd.lessons.checks import Exercise
from minisd.lessons.exercises import (
    attention,
    chance,
    latents,
    longer_memory,
    one_look,
    strength,
    the_line,
    the_loop,
    where_the_steps_go,
    words_pull,
)

LESSONS = (
    the_line,
    one_look,
    the_loop,
    strength,
    where_the_steps_go,
    longer_memory,
    chance,
    words_pull,
    latents,
    attention,
)
EXERCISES: dict[str, Exercise] = {
    name: exercise for lesson in LESSONS for name, exercise in lesson.EXERCISES.items()
}
