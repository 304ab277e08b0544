"""The sampler laboratory: its verdicts on minisd's samplers and on mutants, card and command."""

import inspect
import json
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.figures.svg import plot
from minisd.lab.certificate import certify, theory_of
from minisd.lab.compare import STEPS, compare, table
from minisd.lab.quality import check_uneven, noise_gain
from minisd.lab.subject import Theory
from minisd.more_samplers.guarded_lms import guarded_orders, k_lms_guarded
from minisd.samplers import (
    FACTS,
    SAMPLERS,
    ancestral_step,
    fresh_noise,
    k_euler,
    k_lms,
    lms_weights,
)
from minisd.schedule import SCHEDULES

from . import other_samplers
from .mutants.bugs import BUGS, changes_frozen_sums, failed_check, with_bug

slow = pytest.mark.slow
VARIANTS = [(name, {}) for name in SAMPLERS] + [
    *[("k_lms", {"order": order}) for order in (1, 2, 3)],
    ("k_lms_guarded", {"max_gain": 1.1}),
    ("k_lms_guarded", {"order": 2, "max_gain": 1.1}),
    ("ddim", {"eta": 1.0}),
    ("ddim", {"eta": 0.7}),
    ("k_euler_a", {"eta": 0.5}),
    ("k_dpm_2_a", {"eta": 0.5}),
    ("k_dpmpp_2_a", {"eta": 0.0}),
]
# One without memory, one with memory, one that draws noise.
QUICK = ("k_euler", "k_lms", "k_euler_a")


def quick_first(name: str, options: dict[str, float]):
    """A test's parameters, marked slow unless the sampler is among the quick ones."""
    quick = name in QUICK and not options
    return pytest.param(name, options, marks=[] if quick else slow)


# ---- certificates --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [quick_first(*variant) for variant in VARIANTS])
def test_correct_samplers_pass(name, options):
    certificate = certify(partial(SAMPLERS[name], **options), name, theory_of(name, options))
    assert certificate.passed, certificate.card()
    lines = {line.check: line for line in certificate.lines}
    if "order" in lines:  # those that cannot switch their noise off have only a weak order
        assert abs(lines["order"].value - theory_of(name, options).order) <= 0.1


# Without theory their order 0, a start in the middle that restarts less often, and errors that
# cancel at 10 steps look like bugs.
THEORY_NEEDED = ("lcm", "restart", "euler_ge")
SELF_EVIDENT = [quick_first(name, {}) for name in SAMPLERS if name not in THEORY_NEEDED]


@pytest.mark.parametrize(("name", "options"), SELF_EVIDENT)
def test_correct_samplers_pass_without_theory(name, options):
    certificate = certify(SAMPLERS[name])
    assert certificate.passed, certificate.card()


def test_theory_follows_the_options():
    assert theory_of("k_lms", {"order": 2}).degrees == "0111"
    assert theory_of("plms").degrees == FACTS["plms"].degrees == "1123"
    assert not theory_of("k_lms", {"order": 1}).memory
    assert theory_of("k_lms_guarded").max_gain == 1.1
    assert theory_of("k_lms_guarded", {"max_gain": 2.0}).max_gain == 2.0
    assert (theory_of("ddim").eta, theory_of("ddim").normals) == (0, 0)
    assert theory_of("ddim", {"eta": 0.5}).normals == 10  # also in the step to sigma 0
    assert (theory_of("k_euler_a").eta, theory_of("k_euler_a").normals) == (1, 9)
    assert theory_of("k_euler_a", {"eta": 0.0}).normals == 0
    assert theory_of("own.py:own", {"eta": 0.0}).normals == 0
    assert theory_of("own.py:own").order is None


def test_a_sampler_that_raises_gets_a_card():
    def broken(predict_eps, x, sigmas):
        raise RuntimeError("no idea")
        yield

    certificate = certify(broken, "broken")
    assert not certificate.passed and "no idea" in certificate.card()
    json.loads(certificate.json())


# ---- samplers of other kinds ---------------------------------------------------------------------

adams_twice = partial(other_samplers.adams, repeat=True)
# A name, the sampler, its order, and that of a step from its corrected base, if it has one.
OTHERS = [
    ("UniPC of order 1", partial(other_samplers.unipc, order=1), 2, 1),
    ("UniPC of order 2", partial(other_samplers.unipc, order=2), 3, 2),
    ("UniPC of order 3", partial(other_samplers.unipc, order=3), 4, 3),
    ("trapezoid", other_samplers.trapezoid, 2, 1),
    *[(f"Adams of order {n}", partial(other_samplers.adams, order=n), n + 1, n) for n in (1, 2, 3)],
    *[
        (f"Adams of order {n}, with repeats", partial(adams_twice, order=n), n + 1, None)
        for n in (1, 2, 3)
    ],
]
UNEVEN = "order of a step on an uneven schedule"
CORRECTED = "order of a corrected step, uneven schedule"


@pytest.mark.parametrize(
    ("sampler", "order", "own_order"),
    [
        pytest.param(*values, id=name, marks=[] if name == "UniPC of order 2" else slow)
        for name, *values in OTHERS
    ],
)
def test_predictor_correctors_pass(sampler, order, own_order):
    """With and without theory. If a corrector follows, the order of the step alone is measured."""
    for theory in (Theory(), Theory(order=order, memory=order > 2 or None)):
        certificate = certify(sampler, theory=theory)
        assert certificate.passed, certificate.card()
    lines = {line.check: line for line in certificate.lines}
    assert lines["order"].value == pytest.approx(order, abs=0.1)
    if own_order is None:
        assert CORRECTED not in lines and lines[UNEVEN].verdict == "pass"
    else:
        assert lines[UNEVEN].verdict == "measured" and lines[CORRECTED].verdict == "pass"
        assert lines[UNEVEN].value == pytest.approx(own_order, abs=0.1)
        assert lines[CORRECTED].value == pytest.approx(order, abs=0.1)
        for declared, verdict in ((own_order, "pass"), (order, "fail")):
            theory = Theory(order=order, uneven_order=declared)
            (line,) = (
                line
                for line in certify(sampler, theory=theory, checks=[check_uneven]).lines
                if line.check == UNEVEN
            )
            assert line.verdict == verdict


def test_a_restart_passes():
    """It adds noise again on the way, and goes down again, within one Step."""
    certificate = certify(other_samplers.restart)
    assert certificate.passed, certificate.card()
    lines = {line.check: line.value for line in certificate.lines}
    assert lines["weak order"] == pytest.approx(1, abs=0.1)
    assert lines["normals drawn in 10 steps"] == 1


@pytest.mark.parametrize(
    ("function", "old", "new", "order"),
    [
        ("unipc", "[*nodes, node]", "[*nodes[:1], node]", 3),  # the corrector forgets a node
        ("unipc", "if nodes:", "if False:", 3),  # it never corrects
        ("unipc", "base, sigma_last = x, sigmas[0]", "base, sigma_last = x, sigmas[-2]", 3),
        ("unified_step", "(place - start) / h", "h / (place - start)", 4),
        ("unified_step", "factorial *= n", "factorial *= n + 1", 4),
        ("unified_step", "- expm1(-h) * float", "+ expm1(-h) * float", 3),
        ("trapezoid", "(eps + slope_last) / 2", "(2 * eps + slope_last) / 3", 2),
        ("trapezoid", "h_last * (eps", "(sigma_next - sigma) * (eps", 2),
        ("adams", "moulton(sigmas, i - 1,", "moulton(sigmas, i,", 3),
        ("adams", "[eps, *slopes])", "[*slopes, eps])", 3),
        ("moulton", "sigmas[i + 1 - j]", "sigmas[i + 1] + j * (sigmas[i] - sigmas[i + 1])", 3),
        ("restart", "high**2 - sigma_next**2", "high**2", None),
        ("restart", "fresh_noise(x, generator)", "torch.randn(x.shape).to(x)", None),
        ("restart", "predict_eps(x_next, a)", "predict_eps(x_next, b)", None),
    ],
)
def test_broken_samplers_of_other_kinds_fail(function, old, new, order):
    """Each bug is an edit of the source. Some leave a right method of another order."""
    source = inspect.getsource(other_samplers)
    block = inspect.getsource(getattr(other_samplers, function))
    assert old in block
    namespace = {"__name__": "mutant"}
    exec(compile(source.replace(block, block.replace(old, new)), "mutant", "exec"), namespace)
    sampler = {"unified_step": "unipc", "moulton": "adams"}.get(function, function)
    options = {"order": order - 1} if sampler in ("unipc", "adams") else {}
    mutant = partial(namespace[sampler], **options)
    assert not certify(mutant, theory=Theory(order=order), stop_at_failure=True).passed


def test_noise_by_another_rule_than_the_guides():
    """Each mistake is one line that names fresh_noise; with fresh_noise nothing fails."""

    def ancestral(draw):
        def euler_a(predict_eps, x, sigmas, generator):
            for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
                eps = predict_eps(x, sigma)
                down, up = ancestral_step(sigma, sigma_next, 1.0)
                x_next = x + (down - sigma) * eps
                if up > 0:
                    x_next = x_next + up * draw(x, generator)
                yield minisd.Step(i, sigma, sigma_next, x, eps, x_next)
                x = x_next

        return certify(euler_a, "euler_a")

    def failures(certificate):
        assert all("fresh_noise(x, generator)" in line.meaning for line in certificate.failures)
        return {line.check for line in certificate.failures}

    assert failures(ancestral(fresh_noise)) == set()
    plain = ancestral(lambda x, generator: torch.randn(x.shape, generator=generator).to(x))
    assert failures(plain) == {"pictures of a batch with wrong noise"}
    unconverted = ancestral(lambda x, generator: torch.randn(x.shape, generator=generator))
    assert failures(unconverted) == {
        "pictures of a batch with wrong noise",
        "dtypes that x does not keep",
    }
    (line,) = (line for line in unconverted.failures if "dtypes" in line.check)
    assert "fresh noise in float32 is added to x of another dtype" in line.meaning

    def for_lists(x, generator):
        if isinstance(generator, list):
            return torch.cat([torch.randn(1, *x.shape[1:], generator=g) for g in generator])
        return torch.randn(x.shape, generator=generator)

    assert failures(ancestral(for_lists)) == {"dtypes that x does not keep"}


def test_fresh_noise_needs_a_generator():
    """Without one, torch would use the global generator."""
    with pytest.raises(ValueError, match="needs a generator"):
        fresh_noise(torch.zeros(1, 4, 8, 8), None)


# ---- mutants -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_mutant_applies():
    assert len(BUGS) == 197
    assert len({(bug.sampler, bug.label) for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        with_bug(bug)


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=slow)])
def test_the_certificate_detects_95_percent_of_the_mutants(every):
    """`python -m tests.mutants.bugs` prints the table. A frozen sum detects fewer of them."""
    bugs = BUGS[::every]
    detected = [bug for bug in bugs if failed_check(bug)]
    assert len(detected) >= 0.95 * len(bugs)
    if every == 1:
        detected_by_sums = [bug for bug in bugs if changes_frozen_sums(bug)]
        assert 0.7 * len(bugs) <= len(detected_by_sums) <= 0.8 * len(bugs)


# ---- k_lms_guarded -------------------------------------------------------------------------------


def gain_of(sigmas: list[float], orders: list[int]) -> float:
    """The noise gain, computed from the weights."""
    totals = [0.0] * len(orders)
    for i, order in enumerate(orders):
        for j, weight in enumerate(lms_weights(sigmas, i, order)):
            totals[i - j] += weight
    return sum(map(abs, totals)) / sigmas[0]


@pytest.mark.parametrize("schedule", ["model", "karras"])
@pytest.mark.parametrize("every", [13, pytest.param(4, marks=slow)])
def test_guarded_lms_keeps_its_gain_and_its_order(schedule, every):
    """Step counts up to 150, all strengths. From strength 0.5 on, order 1 is used only in the first
    step and, on Karras's schedule, in the step to 0."""
    for steps in range(every, 151, every):
        for start in range(steps):
            sigmas = SCHEDULES[schedule](steps)[start:]
            orders = guarded_orders(sigmas, 4, 1.1)
            assert gain_of(sigmas, orders) <= 1.1 + 1e-12
            if start <= steps / 2:
                assert min(orders[1:-1], default=2) >= 2
                if schedule == "model":
                    assert min(orders[1:], default=2) >= 2


def test_published_noise_gains():
    """50 steps, strength 0.1: orders 1 to 4 on both schedules. The last on the model schedule is
    that of diffusers' issue 5630."""
    for schedule, gains in {
        "model": (1.0, 1.0, 2.42, 6.46),
        "karras": (1.0, 2.78, 9.67, 27.4),
    }.items():
        sigmas = SCHEDULES[schedule](50)[45:]
        for order, gain in enumerate(gains, 1):
            assert noise_gain(partial(k_lms, order=order), sigmas) == pytest.approx(gain, rel=2e-3)
        assert noise_gain(partial(k_lms_guarded, max_gain=1.1), sigmas) <= 1.1


def test_a_guard_that_never_acts_changes_no_bit():
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 14.6
    sigmas = SCHEDULES["karras"](20)[:-1]
    for plain, guarded in zip(
        k_lms(lambda x, s: x / (s + 1), x, sigmas),
        k_lms_guarded(lambda x, s: x / (s + 1), x, sigmas, max_gain=100.0),
        strict=True,
    ):
        assert torch.equal(plain.x_next, guarded.x_next)
    with pytest.raises(ValueError, match="max_gain"):
        next(k_lms_guarded(lambda x, s: x, x, sigmas, max_gain=0.9))
    with pytest.raises(ValueError, match="order of k_lms_guarded must be"):
        next(k_lms_guarded(lambda x, s: x, x, sigmas, order=0))


def test_img2img_with_the_guarded_sampler(emoji):
    """The guard acts on a short run: the result differs from k_lms's and is closer to k_heun's."""
    pictures = Path(__file__).parent.parent / "docs" / "pictures"
    sketch = Image.open(pictures / "fire-sketch.png").resize((64, 64))
    settings = {"strength": 0.1, "steps": 50, "seed": 3}
    latents = {
        sampler: minisd.img2img(emoji, "fire", sketch, sampler=sampler, **settings).latent
        for sampler in ("k_lms", "k_lms_guarded", "k_heun")
    }
    difference = {name: (x - latents["k_heun"]).norm() for name, x in latents.items()}
    assert 0 < difference["k_lms_guarded"] < difference["k_lms"]


# ---- the command ---------------------------------------------------------------------------------

OWN = """
from minisd.samplers import Step

def half(predict_eps, x, sigmas, share=0.5):
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, sigma)
        x_next = x + share * (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
"""


def test_the_command_writes_a_card_and_a_page(tmp_path, capsys):
    page_file = tmp_path / "page.html"
    assert main(["lab", "k_lms", "--set", "order=2", "--html", str(page_file)]) == 0
    assert "k_lms order=2: nothing fails" in capsys.readouterr().out
    page = page_file.read_text(encoding="utf-8")
    assert page.count("<svg") == 5 and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    for svg in page.split("<svg")[1:]:
        ET.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")

    assert main(["lab", "k_lms", "--html", str(page_file)]) == 0  # a page of minisd's own
    assert "order=2" not in page_file.read_text(encoding="utf-8")
    page_file.write_text("mine")
    assert main(["lab", "k_lms", "--html", str(page_file)]) == 2
    assert "overwrites only" in capsys.readouterr().err and page_file.read_text() == "mine"


def test_the_command_certifies_a_function_in_a_file(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    assert main(["lab", f"{tmp_path}/own.py:half", "--json"]) == 1
    card = json.loads(capsys.readouterr().out)
    assert card["name"] == "half" and not card["passed"]
    failed = {line["check"] for line in card["lines"] if line["verdict"] == "fail"}
    assert "order" in failed and "noise present / sigma passed - 1" in failed
    assert main(["lab", f"{tmp_path}/own.py:half", "--set", "share=1"]) == 0  # which is Euler
    assert main(["lab", "k_euler", "--order", "2"]) == 1


@pytest.mark.parametrize(
    ("words", "status", "verdict"),
    [
        (["--order", "3"], 0, "measured"),
        pytest.param(["--order", "3", "--uneven-order", "2"], 0, "pass", marks=slow),
        pytest.param(["--order", "3", "--uneven-order", "3"], 1, "fail", marks=slow),
        pytest.param(["--order", "2"], 1, "measured", marks=slow),
        pytest.param(["--order", "4", "--set", "order=3"], 0, "measured", marks=slow),
    ],
)
def test_the_command_certifies_a_predictor_corrector(words, status, verdict, capsys):
    assert main(["lab", f"{other_samplers.__file__}:unipc", *words]) == status
    (line,) = (line for line in capsys.readouterr().out.splitlines() if UNEVEN in line)
    assert line.split()[0] == verdict


def test_the_command_certifies_k_lms_guarded(capsys):
    assert main(["lab", "k_lms_guarded", "--set", "order=3", "max_gain=1.5"]) == 0
    card = capsys.readouterr().out
    assert "k_lms_guarded order=3 max_gain=1.5: nothing fails" in card and "<= 1.5" in card


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["k_elms"], "there is no sampler named 'k_elms'"),
        (["nowhere.py:f"], "there is no file nowhere.py"),
        (["k_lms", "--set", "eta=1"], "k_lms has no option 'eta'; it has order"),
        (["k_lms", "--compare", "k_elms"], "there is no sampler named 'k_elms'"),
        (["k_lms", "--schedule", "k_arras"], "there is no schedule named 'k_arras'"),
        (["k_lms", "--html", "page.txt"], "page.txt should end in .html"),
        (
            ["k_lms", "--html", "pyproject.toml/page.html"],
            "cannot write to pyproject.toml: it is a file, not a folder",
        ),
    ],
)
def test_the_command_names_the_mistake(words, complaint, capsys):
    assert main(["lab", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_an_option_without_a_value(capsys):
    with pytest.raises(SystemExit) as error:
        main(["lab", "k_lms", "--set", "order"])
    assert error.value.code == 2
    assert "OPTION=VALUE" in capsys.readouterr().err


def test_a_file_without_the_function(tmp_path, capsys):
    (tmp_path / "own.py").write_text("x = 1\n")
    assert main(["lab", f"{tmp_path}/own.py:f"]) == 2
    assert "has no function named 'f'" in capsys.readouterr().err


# ---- the comparison, and plots -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "reference"), [((5, 10), 20), pytest.param(STEPS, 60, marks=slow)]
)
def test_comparison_on_the_network(emoji, monkeypatch, steps, reference):
    monkeypatch.setattr("minisd.lab.compare.STEPS", steps)
    samplers = {"k_euler": k_euler, "k_lms": k_lms}
    curves = dict(compare(emoji, samplers, "fire", guidance=1.0, reference_steps=reference))
    assert [calls for calls, _ in curves["k_lms"]] == list(steps)
    assert curves["k_euler"][-1][1] < curves["k_euler"][0][1]
    assert curves["k_lms"][-1][1] < curves["k_euler"][-1][1]
    assert len(table(curves).splitlines()) == 5


def test_plots_of_nothing_and_of_one_point():
    """Values that cannot be drawn are left out; the labels are escaped; all points are drawn."""
    assert "nothing to show" in plot("title", {"a": [(1.0, float("nan"))]}, "x", "y", log_y=True)
    point = plot("a < b", {"c & d": [(1.0, 2.0)]}, "x", "y", log_x=True, log_y=True)
    texts = [element.text for element in ET.fromstring(point).iter() if element.text]
    assert "a < b" in texts and "c & d" in texts
    assert point.count("<circle") == 1
    flat = ET.fromstring(plot("flat", {"c": [(1.0, 2.0), (2.0, 2.0)]}, "x", "y"))
    circles = [element for element in flat.iter() if element.tag.endswith("circle")]
    heights = {circle.get("cy") for circle in circles}
    positions = [float(circle.get("cx")) for circle in circles]
    assert len(heights) == 1 and len(positions) == 2 and positions[0] < positions[1]


def test_samplers_yield_minisd_steps():
    step = next(k_euler(lambda x, sigma: x, torch.zeros(1, 4, 8, 8), [1.0, 0.0]))
    assert isinstance(step, minisd.Step)
