"""The sampler laboratory: what it says of minisd's samplers, of bugs, and how it says it."""

import json
import xml.etree.ElementTree as ET
from functools import partial

import pytest
import torch

from minisd.__main__ import main
from minisd.lab.bugs import BUGS, certificate_finds, sum_and_mean_find
from minisd.lab.certificate import certify, theory_of
from minisd.lab.plot import plot
from minisd.lab.quality import noise_gain
from minisd.samplers import SAMPLERS, guarded_orders, k_euler, k_lms
from minisd.schedule import SCHEDULES
from minisd.step import Step

VARIANTS = [(name, {}) for name in SAMPLERS] + [
    *[("k_lms", {"order": order}) for order in (1, 2, 3)],
    ("k_lms", {"max_gain": 1.1}),
    ("k_lms", {"order": 2, "max_gain": 1.1}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"eta": 0.7}),
    ("k_euler_a", {"eta": 0.5}),
    ("k_dpm_2_a", {"eta": 0.5}),
    ("k_dpmpp_2_a", {"eta": 0.0}),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_no_correct_sampler_fails(name, options):
    certificate = certify(partial(SAMPLERS[name], **options), name, theory_of(name, options))
    assert certificate.passed, certificate.card()
    lines = {line.check: line for line in certificate.lines}
    assert abs(lines["order"].value - theory_of(name, options).order) <= 0.1
    assert certificate.seconds < 30


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_correct_sampler_fails_where_nothing_is_known_about_it(name):
    certificate = certify(SAMPLERS[name])
    assert certificate.passed, certificate.card()


def test_the_certificate_finds_95_percent_of_the_bugs():
    """As `python -m minisd.lab.bugs` does. The second number is that of others' tests."""
    found = sum(bool(certificate_finds(bug)) for bug in BUGS)
    frozen = sum(map(sum_and_mean_find, BUGS))
    assert found >= 0.95 * len(BUGS)
    assert 0.7 * len(BUGS) <= frozen <= 0.8 * len(BUGS)


def test_bugs_are_many_and_apply_to_the_source_as_it_is():
    from minisd.lab.bugs import with_bug

    assert len(BUGS) >= 100
    assert len({(bug.sampler, bug.label) for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        with_bug(bug)


def gain_of(sigmas: list[float], orders: list[int]) -> float:
    """The noise gain, from the weights themselves."""
    from minisd.samplers import lms_weights

    totals = [0.0] * len(orders)
    for i, order in enumerate(orders):
        for j, weight in enumerate(lms_weights(sigmas, i, order)):
            totals[i - j] += weight
    return sum(map(abs, totals)) / sigmas[0]


@pytest.mark.parametrize("grid", ["model", "karras"])
@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_guarded_lms_keeps_its_gain_and_its_order(grid, every):
    """All steps up to 150, all strengths. Order 1: the first step, and on Karras' grid that to
    0."""
    for steps in range(every, 151, every):
        for start in range(steps):
            sigmas = SCHEDULES[grid](steps)[start:]
            orders = guarded_orders(sigmas, 4, 1.1)
            assert gain_of(sigmas, orders) <= 1.1 + 1e-12
            if start <= steps / 2:
                assert min(orders[1:-1], default=2) >= 2
                if grid == "model":
                    assert min(orders[1:], default=2) >= 2


def test_the_noise_gains_that_were_published():
    """50 steps, strength 0.1: orders 1 to 4 on both grids, and diffusers' issue 5630 is the last
    of model."""
    for grid, wanted in {
        "model": (1.0, 1.0, 2.42, 6.46),
        "karras": (1.0, 2.78, 9.67, 27.4),
    }.items():
        sigmas = SCHEDULES[grid](50)[45:]
        for order, gain in enumerate(wanted, 1):
            assert noise_gain(partial(k_lms, order=order), sigmas) == pytest.approx(gain, rel=2e-3)
        assert noise_gain(partial(k_lms, max_gain=1.1), sigmas) <= 1.1


def test_a_guard_that_never_acts_changes_nothing():
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14.6
    sigmas = SCHEDULES["karras"](20)[:-1]
    for plain, guarded in zip(
        k_lms(lambda x, s: x / (s + 1), x, sigmas),
        k_lms(lambda x, s: x / (s + 1), x, sigmas, max_gain=100.0),
    ):
        assert torch.equal(plain.x_next, guarded.x_next)
    with pytest.raises(ValueError, match="max_gain"):
        next(k_lms(lambda x, s: x, x, sigmas, max_gain=0.9))


def test_a_sampler_that_raises_has_a_card():
    def broken(predict_eps, x, sigmas):
        raise RuntimeError("no idea")
        yield

    certificate = certify(broken, "broken")
    assert not certificate.passed and "no idea" in certificate.card()
    json.loads(certificate.json())


OWN = """
from minisd.samplers import Step

def half(predict_eps, x, sigmas, share=0.5):
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, sigma)
        x_next = x + share * (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
"""


def test_the_command(tmp_path, capsys):
    assert main(["lab", "k_lms", "--set", "order=2", "--html", str(tmp_path / "page.html")]) == 0
    assert "k_lms order=2: nothing fails" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 5 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    for svg in page.split("<svg")[1:]:
        ET.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")

    (tmp_path / "own.py").write_text(OWN)
    assert main(["lab", f"{tmp_path}/own.py:half", "--json"]) == 1
    card = json.loads(capsys.readouterr().out)
    assert card["name"] == "half" and not card["passed"]
    failed = {line["check"] for line in card["lines"] if line["verdict"] == "fail"}
    assert "order" in failed and "noise present / noise told - 1" in failed
    assert main(["lab", f"{tmp_path}/own.py:half", "--set", "share=1"]) == 0  # which is Euler
    assert main(["lab", "k_euler", "--order", "2"]) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["k_elms"], "no sampler is named 'k_elms'"),
        (["nowhere.py:f"], "no such file"),
        (["k_lms", "--set", "order"], "OPTION=VALUE"),
    ],
)
def test_the_command_says_what_is_wrong(words, complaint, capsys):
    assert main(["lab", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_file_without_the_function(tmp_path, capsys):
    (tmp_path / "own.py").write_text("x = 1\n")
    assert main(["lab", f"{tmp_path}/own.py:f"]) == 2
    assert "has no function 'f'" in capsys.readouterr().err


def test_comparison_on_the_network(emoji):
    from minisd.lab.compare import STEPS, compare, table

    curves = dict(
        compare(
            emoji, {"k_euler": k_euler, "k_lms": k_lms}, "fire", guidance=1.0, reference_steps=60
        )
    )
    assert [calls for calls, _ in curves["k_lms"]] == list(STEPS)
    assert curves["k_euler"][-1][1] < curves["k_euler"][0][1]
    assert curves["k_lms"][-1][1] < curves["k_euler"][-1][1]
    assert len(table(curves).splitlines()) == 5


def test_plots_of_nothing_and_of_one_point():
    assert "nothing to show" in plot("title", {"a": [(1.0, float("nan"))]}, "x", "y", log_y=True)
    ET.fromstring(plot("a < b", {"c & d": [(1.0, 2.0)]}, "x", "y", log_x=True, log_y=True))
    ET.fromstring(plot("flat", {"c": [(1.0, 2.0), (2.0, 2.0)]}, "x", "y"))


def test_steps_are_what_samplers_yield():
    import minisd

    assert minisd.Step is Step
