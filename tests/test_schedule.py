"""Noise levels against published numbers, and the rule by which img2img starts in a schedule."""

import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import minisd
from minisd import SAMPLERS
from minisd.cli.main import main
from minisd.observe.plan import plan
from minisd.run import doubts
from minisd.schedule import (
    SCHEDULES,
    SIGMAS,
    default_schedule,
    levels_of,
    sigma_to_t,
    start_index,
    t_to_sigma,
)

from .stand_ins import StandIn

# k-diffusion's own schedules at 10 steps, computed by its code, 6 decimals.
KARRAS_10 = [14.614641, 9.102928, 5.478392, 3.168603, 1.749417, 0.914072, 0.446918, 0.201398]
KARRAS_10 += [0.081910, 0.029167, 0.0]
MODEL_10 = [14.614641, 7.839883, 4.609174, 2.918307, 1.950161, 1.344928, 0.932358, 0.624977]
MODEL_10 += [0.368658, 0.029167, 0.0]


def test_table():
    assert SIGMAS[0] == pytest.approx(0.0291675, abs=5e-7)  # the published value is float32's
    assert SIGMAS[999] == pytest.approx(14.614642, abs=2e-6)
    # Lin et al. 2023, table 1: SD's last level keeps sqrt(abar) = 0.068265 of the picture.
    assert (SIGMAS[999] ** 2 + 1) ** -0.5 == pytest.approx(0.068265, abs=5e-7)


@pytest.mark.parametrize(("name", "expected"), [("karras", KARRAS_10), ("model", MODEL_10)])
def test_schedules_of_k_diffusion(name, expected):
    assert SCHEDULES[name](10) == pytest.approx(expected, abs=2e-6)  # float32 there


def test_karras_timesteps():
    expected = [999, 916.284, 815.045, 687.153, 523.198, 327.146, 145.938, 40.856, 6.732, 0]
    assert [sigma_to_t(s) for s in KARRAS_10[:-1]] == pytest.approx(expected, abs=2e-3)


def timesteps(schedule: str, steps: int) -> list[int]:
    """Lowest first, without the end."""
    levels = SCHEDULES[schedule](steps)
    assert levels[-1] == SIGMAS[0]
    ts = [int(np.searchsorted(SIGMAS, level)) for level in reversed(levels[:-1])]
    assert [SIGMAS[t] for t in ts] == levels[-2::-1]
    return ts


def test_ddim_schedule():
    assert SCHEDULES["ddim"](10) == [SIGMAS[t] for t in range(901, 0, -100)] + [SIGMAS[0]]
    for name in ("ddim", "ddim_original"):
        with pytest.raises(ValueError, match="1 to 999 steps"):
            SCHEDULES[name](1000)


def test_the_ddim_schedule_reaches_the_noisiest_levels_at_every_count():
    """The rule with exact integers: evenly from 1 to near 999, without repeats."""
    for steps in range(1, 1000):
        ts = timesteps("ddim", steps)
        assert ts == [1 + i * 1000 // steps for i in range(steps)]
        assert len(set(ts)) == steps and ts[0] >= 1 and ts[-1] <= 999
        gaps = {b - a for a, b in zip(ts, ts[1:])}
        assert gaps <= {1000 // steps, 1000 // steps + 1}
        if steps >= 10:
            assert SCHEDULES["ddim"](steps)[0] >= SCHEDULES["ddim"](10)[0]
        if steps >= 20:
            assert ts[-1] >= 950
        if 1000 % steps == 0:
            assert SCHEDULES["ddim"](steps) == SCHEDULES["ddim_original"](steps)


def test_img2img_starts_within_a_step_of_its_share_of_the_timesteps():
    for steps in range(1, 1000):
        ts = timesteps("ddim", steps)
        for strength in (0.1, 0.3, 0.5, 0.75, 1.0):
            steps_run = steps - start_index(steps, strength)
            if steps_run:
                assert abs(ts[steps_run - 1] - 999 * steps_run / steps) <= 1000 / steps


def test_the_original_ddim_schedule():
    """CompVis: range(0, 1000, 1000 // steps) plus 1, of which img2img uses the lowest."""
    for steps in range(1, 1000):
        assert timesteps("ddim_original", steps) == [i * (1000 // steps) + 1 for i in range(steps)]
    assert timesteps("ddim_original", 30)[:21] == list(range(1, 1000, 33))[:21]
    assert timesteps("ddim_original", 334)[-1] == 667  # the reason for the other one
    assert timesteps("ddim_original", 501)[-1] == 501


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the schedule starts at sigma")
def test_pictures_of_neighbouring_ddim_counts_are_alike(emoji):
    """333 and 334 steps: a fire in both. With the original's rule, 334 steps give mush."""

    def draw(steps: int, schedule: str) -> np.ndarray:
        settings = {"steps": steps, "schedule": schedule, "seed": 1}
        image = minisd.txt2img(emoji, "fire, noto", sampler="ddim", **settings).image
        return np.asarray(image, dtype=np.float64)

    pictures = {steps: draw(steps, "ddim") for steps in (333, 334)}
    assert np.abs(pictures[333] - pictures[334]).mean() <= 10
    assert np.abs(pictures[333] - draw(334, "ddim_original")).mean() > 40


@given(st.sampled_from(["model", "karras", "exponential", "ddim"]), st.integers(1, 999))
def test_schedules_descend(name, steps):
    sigmas = SCHEDULES[name](steps)
    assert len(sigmas) == steps + 1
    assert all(type(s) is float for s in sigmas)
    assert all(a > b for a, b in zip(sigmas, sigmas[1:]))
    assert sigmas[-1] >= 0 and sigmas[0] <= SIGMAS[999] * (1 + 1e-12)


@given(st.floats(0, 999))
def test_t_and_sigma_are_inverse(t):
    assert sigma_to_t(t_to_sigma(t)) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "strength", "steps_run"),
    [(10, 0.7, 7), (10, 0.4, 4), (50, 0.4, 20), (30, 0.7, 21), (29, 0.7, 20)]  # the document's
    + [(50, 0.75, 37), (50, 0.8, 40), (20, 0.1, 2), (10, 0.05, 0), (10, 0, 0), (10, 1, 10)]
    + [(50, 0.58, 29), (90, 0.7, 63), (100, 0.29, 29), (100, 0.57, 57), (100, 0.58, 58)],  # traps
)
def test_steps_run(steps, strength, steps_run):
    assert start_index(steps, strength) == steps - steps_run


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_steps_run_is_the_exact_floor(steps, thousandths):
    exact = math.floor(steps * Fraction(thousandths, 1000))
    assert steps - start_index(steps, thousandths / 1000) == exact


def test_default_schedule():
    for sampler in SAMPLERS:
        assert default_schedule(sampler) == ("ddim" if sampler == "ddim" else "model")
    assert default_schedule(SAMPLERS["ddim"]) == "model"  # a function has no name


@pytest.mark.parametrize("strength", [-0.01, 1.01, math.nan, math.inf])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="between 0"):
        start_index(10, strength)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "10", None])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match="whole number"):
        start_index(steps, 0.5)
    for schedule in SCHEDULES.values():
        with pytest.raises(ValueError, match="whole number"):
            schedule(steps)


# ---- schedules of one's own ----------------------------------------------------------------------

HIGH, LOW = float(SIGMAS[-1]), float(SIGMAS[0])
USELESS: dict[str, tuple[Callable[[int], Any], str]] = {
    "rising": (lambda n: [14.6, 20.0, 1.0, 0.0], r"must fall, to 0 or above, but 20 follows 14\.6"),
    "rising later": (
        lambda n: [14.6, 1.0, 1.5, 0.0],
        "must fall, to 0 or above, but 1.5 follows 1",
    ),
    "equal": (lambda n: [14.6, 5.0, 5.0, 0.0], "must fall, to 0 or above, but 5 follows 5"),
    "two zeros": (lambda n: [14.6, 5.0, 0.0, 0.0], "must fall, to 0 or above, but 0 follows 0"),
    "nan": (lambda n: [14.6, math.nan, 1.0, 0.0], "must fall, to 0 or above, but nan follows 14.6"),
    "nan first": (lambda n: [math.nan, 5.0, 1.0, 0.0], "to 0 or above, but 5 follows nan"),
    "nan last": (lambda n: [14.6, 5.0, 1.0, math.nan], "to 0 or above, but nan follows 1"),
    "infinite": (lambda n: [math.inf, 5.0, 1.0, 0.0], "to 0 or above, but 5 follows inf"),
    "negative": (lambda n: [14.6, 5.0, 1.0, -1.0], "to 0 or above, but -1 follows 1"),
    "upside down": (lambda n: SCHEDULES["karras"](n)[::-1], "must fall, to 0 or above"),
    "empty": (lambda n: [], "3 steps need 4 noise levels, not 0"),
    "one": (lambda n: [14.6], "3 steps need 4 noise levels, not 1"),
    "too few": (lambda n: [14.6, 1.0, 0.0], "3 steps need 4 noise levels, not 3"),
    "too many": (lambda n: SCHEDULES["karras"](n + 1), "3 steps need 4 noise levels, not 5"),
    "nothing": (lambda n: None, "must return a list of numbers, not None"),
    "a number": (lambda n: 14.6, "must return a list of numbers, not 14.6"),
    "words": (lambda n: ["high", "low"], r"must return a list of numbers, not \['high', 'low'\]"),
    "holes": (lambda n: [14.6, None, 1.0, 0.0], "must return a list of numbers"),
    "complex": (lambda n: [14.6, 5j, 1.0, 0.0], "must return a list of numbers"),
    "a table": (lambda n: np.ones((4, 2)), r"of numbers, not array\(\[\[1., 1.\], \[1., 1.\]"),
    "a tensor of two": (lambda n: torch.ones(4, 2), "of numbers, not tensor"),
    "a tensor of none": (lambda n: torch.tensor(14.6), "of numbers, not tensor"),
}
DOUBTFUL: dict[str, tuple[Callable[[int], Any], str]] = {
    "above": (
        lambda n: [100.0, 5.0, 1.0, 0.0],
        r"level 100, but .* was trained on 0\.0292 to 14\.61",
    ),
    "below": (
        lambda n: [14.6, 5.0, 0.01, 0.0],
        r"level 0\.01, but the network was trained on 0\.0292",
    ),
    "just above": (lambda n: [14.8, 5.0, 1.0, 0.0], r"level 14\.8, but the network"),
    "starts low": (lambda n: [2.0, 1.0, 0.5, 0.0], r"starts at sigma 2\.00, far from pure noise"),
    "ends high": (lambda n: [14.6, 5.0, 1.0, 0.5], r"ends at sigma 0\.5: that noise stays"),
    "ddim": (
        SCHEDULES["ddim"],
        r"starts at sigma 2\.93, .*: use more steps, or the schedule model",
    ),
}
RIGHT: dict[str, Callable[[int], Any]] = {
    "integers": lambda n: [14, 5, 1, 0],
    "an array": lambda n: np.array([14, 5, 1, 0]),
    "float32": lambda n: np.array([14.6146, 5, 1, 0], dtype=np.float32),
    "a tensor": lambda n: torch.tensor([14.0, 5.0, 1.0, 0.0]),
    "a tuple": lambda n: (14.0, 5.0, 1.0, 0.0),
    "an iterator": lambda n: iter([14.0, 5.0, 1.0, 0.0]),
    "the limits": lambda n: [HIGH, 5.0, LOW, 0.0],
    "the limits in float32": lambda n: torch.tensor([HIGH, 5.0, LOW, 0.0]),
    "rounded": lambda n: [14.615, 5.0, 0.029, 0.0],
    "the end of ddim": lambda n: [HIGH, 5.0, 1.0, LOW],
}
PAGES: dict[str, Callable[[Any], Any]] = {
    "img2img": lambda schedule: minisd.img2img(StandIn(), "", PICTURE, schedule=schedule, **RUN),
    "txt2img": lambda schedule: minisd.txt2img(StandIn(), "", schedule=schedule, **RUN_T),
    "inpaint": lambda schedule: minisd.inpaint(StandIn(), "", HOLED, schedule=schedule, **RUN),
    "plan": lambda schedule: plan(3, 0.7, "k_euler", schedule),
}
RUN_T: dict[str, Any] = {"steps": 3, "seed": 1, "sampler": "k_euler"}
RUN = {"strength": 0.7, **RUN_T}
PICTURE = Image.new("RGB", (16, 16), "red")
HOLED = PICTURE.copy()
HOLED.putalpha(Image.fromarray(np.repeat(np.uint8([0, 255]), 128).reshape(16, 16)))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("case", USELESS)
def test_levels_that_no_run_can_use(page, case):
    schedule, message = USELESS[case]
    with pytest.raises(ValueError, match=message) as error:
        PAGES[page](schedule)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 120


@pytest.mark.parametrize("case", DOUBTFUL)
@pytest.mark.parametrize("page", ["img2img", "txt2img", "inpaint"])
def test_levels_that_may_spoil_the_picture(page, case):
    schedule, message = DOUBTFUL[case]
    with pytest.warns(UserWarning, match=message) as record:
        PAGES[page](schedule)
    (warning,) = [w for w in record if "schedule" in str(w.message)]
    assert warning.filename == __file__  # at the caller's line


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_plan_has_the_warnings_as_notes(case):
    schedule, message = DOUBTFUL[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (note,) = plan(3, 0.7, "k_euler", schedule).notes
    assert re.search(message, note)


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("page", PAGES)
def test_levels_in_other_forms(page, case):
    """They become a list of floats, and nothing is said."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*schedule")
        PAGES[page](RIGHT[case])
    levels = levels_of(RIGHT[case], 3)
    assert type(levels) is list and all(type(level) is float for level in levels)
    assert levels == pytest.approx([float(level) for level in RIGHT[case](3)])


def test_the_levels_become_the_run():
    events: list[Any] = []
    schedule = RIGHT["a tensor"]
    minisd.img2img(StandIn(), "", PICTURE, schedule=schedule, observe=events.append, **RUN)
    steps = [event for event in events if isinstance(event, minisd.Step)]
    assert [(step.sigma, step.sigma_next) for step in steps] == [(5.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize("name", ["model", "karras", "exponential", "ddim"])
def test_the_schedules_raise_no_doubt_from_4_steps_on(name):
    for steps in (*range(4, 60), 150, 333, 501, 999):
        assert doubts(SCHEDULES[name](steps)) == []


def test_ddim_with_1_to_3_steps_says_where_it_starts():
    for steps, sigma in ((1, "0.04"), (2, "1.62"), (3, "2.93")):
        (note,) = plan(steps, 1.0, "ddim").notes
        assert f"starts at sigma {sigma}" in note and "use more steps" in note
    assert plan(4, 1.0, "ddim").notes == []


OWN = """
def rising(steps):
    return [14.6, 20.0, 1.0, 0.0]

def high(steps):
    return [100.0, 5.0, 1.0, 0.0]
"""


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "-f", "0.7"],
        ["img2img", "fire", "-I", "in.png", "-f", "0.7"],
        ["txt2img", "fire"],
        ["img2img", "fire", "-I", "holed.png", "-f", "0.7"],
        ["strip", "fire", "-I", "in.png", "-f", "0.7", "--to", "strip.png"],
        ["sweep", "fire", "-I", "in.png", "-f", "0.7", "--to", "swept"],
        ["explore", "fire", "-I", "in.png"],
        ["lab", "k_euler", "--compare", "k_heun"],
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_own_schedules_on_the_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    Image.new("RGB", (16, 16), "red").save("in.png")
    HOLED.save("holed.png")
    steps = [] if words[0] == "lab" else ["-s", "3"]
    assert main([*words, *steps, "--schedule", "own.py:rising"]) == 2
    error = capsys.readouterr().err
    wanted = "5 steps need 6" if words[0] == "lab" else "20 follows 14.6"
    assert wanted in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.html")) and not (tmp_path / "strip.png").exists()


def test_explain_notes_what_a_run_warns_of(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    schedule = f"{tmp_path / 'own.py'}:high"
    assert main(["explain", "-s", "3", "-f", "0.7", "--schedule", schedule]) == 0
    assert capsys.readouterr().err.count("note: the schedule has the noise level 100, but") == 1
    assert main(["explain", "-s", "4", "-A", "ddim"]) == 0  # its neighbour has 3 steps
    assert "note" not in capsys.readouterr().err


def test_a_command_notes_it_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["txt2img", "fire", "-A", "ddim", "-s", "2", "-S", "1", "-C", "1"]) == 0
    assert capsys.readouterr().err.count("note: the schedule starts at sigma 1.62") == 1
