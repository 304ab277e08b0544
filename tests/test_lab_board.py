"""The board: error by network calls, on exact models here; and strong order, and formulas."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from minisd.cli.main import main
from minisd.lab.board import (
    CALLS,
    STARTS,
    Entry,
    asks_for_both,
    begin,
    exact_benches,
    from_csv,
    levels_from,
    measure,
    network_bench,
    place,
    rows_of,
    start_level,
    steps_within,
    to_csv,
    with_references,
)
from minisd.lab.board_page import committed, figure, page, places
from minisd.lab.certificate import certify, theory_of
from minisd.lab.formula import LAMBDAS, Parabola, check_formula, defect
from minisd.lab.paths import SampledPath, check_strong
from minisd.lab.quality import plain_schedule
from minisd.lab.subject import GAUSSIAN, HIGH, LOW, Subject, all_steps, latent, log_slope, rms
from minisd.more_samplers.brownian import BrownianPath
from minisd.samplers import SAMPLERS, Step, ancestral_step, fresh_noise
from minisd.schedule import SCHEDULES, karras, start_index

from .mutants.bugs import MORE_BUGS, failed_check, with_bug

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Both exact models, with references of 100 steps in place of 1000."""
    benches = [with_references(bench, 100) for bench in exact_benches()]
    return [
        entry
        for bench in benches
        for name in ("k_euler", "k_dpmpp_2", "k_heun", "k_euler_a", "euler_cfg_pp")
        for entry in measure(bench, name, SAMPLERS[name], 100)
    ]


def test_every_sampler_has_a_number_for_each_count_of_calls(entries):
    assert len(entries) == 2 * len(STARTS) * 5 * len(CALLS)
    assert all(
        entry.calls_used <= entry.calls and entry.interval < entry.error for entry in entries
    )
    by_key = {(e.model, e.start, e.sampler, e.calls): e for e in entries}
    for model in ("mixture", "guided mixture"):
        for start in STARTS:
            for sampler in ("k_euler", "k_dpmpp_2"):
                errors = [by_key[model, start, sampler, calls].error for calls in CALLS]
                assert errors[-1] < errors[0] / 3  # more calls, less error
    heun = by_key["mixture", "noise", "k_heun", 10]
    assert (heun.steps, heun.calls_used) == (5, 9)  # two calls a step, one in the last
    own = {entry.sampler for entry in entries if entry.reference == "itself"}
    assert own == {"k_euler_a", "euler_cfg_pp"}


def test_the_errors_are_those_of_the_definition():
    """k_euler with 5 steps from noise against k_dpmpp_2 with 100, computed here again."""
    bench = with_references(exact_benches()[0], 100)
    entry = next(measure(bench, "k_euler", SAMPLERS["k_euler"], 100))
    model, x = bench.predict(1.0), HIGH * bench.noise
    ends = [
        all_steps(SAMPLERS[name], model, x, karras(steps))[-1].x_next
        for name, steps in (("k_euler", 5), ("k_dpmpp_2", 100))
    ]
    errors = (ends[0] - ends[1]).square().mean((1, 2, 3)).sqrt()
    assert entry.error == pytest.approx(errors.mean().item(), rel=1e-12)
    standard_error = errors.std().item() / len(errors) ** 0.5
    assert entry.interval == pytest.approx(2.571 * standard_error, rel=1e-9)


def test_levels_of_the_board():
    assert levels_from(HIGH, 10) == pytest.approx(karras(10))
    for steps in (100, 1000):
        expected = karras(steps)[start_index(steps, 0.7)]
        assert start_level(0.7) == pytest.approx(expected, rel=3 / steps)
    assert steps_within(SAMPLERS["k_heun"], HIGH, 10) == (5, 9)
    assert steps_within(SAMPLERS["plms"], HIGH, 5) == (4, 5)  # the first step calls twice
    assert asks_for_both(SAMPLERS["euler_cfg_pp"]) and not asks_for_both(SAMPLERS["k_euler"])


def test_a_board_is_written_and_read(entries, tmp_path):
    copies = from_csv(to_csv(entries))
    for copy, entry in zip(copies, entries, strict=True):
        assert replace(copy, error=0, interval=0) == replace(entry, error=0, interval=0)
        assert copy.error == pytest.approx(entry.error, rel=1e-5)
    text = page(entries, ["A sentence."])
    assert text.count("| sampler |") == 2 * len(STARTS) * 2 and "A sentence." in text
    assert figure(entries, "mixture").count("<polyline") == 3  # at guidance 1, CFG++ is Euler
    rows = rows_of(entries, "mixture", "noise", "k_dpmpp_2")
    assert (rows[0][0], rows[-1][0]) == ("k_dpmpp_2", "k_heun") and len(rows) == 4
    best = next(e for e in entries if e.sampler == "k_dpmpp_2" and e.calls == 10)
    assert place(entries, best) == (1, 4)
    assert place(entries, replace(best, sampler="mine", error=1e9)) == (5, 5)
    assert places(entries, [best])[0].endswith("place 1 of 4")
    with pytest.raises(ValueError, match="not a board's table"):
        from_csv("a,b\n1,2\n")


def test_a_network_on_the_board(tiny):
    """The cases are texts and seeds; img2img starts from the pictures of other texts."""
    bench = network_bench(tiny, {})
    assert bench.noise.shape == (6, 4, 8, 8)
    assert torch.equal(bench.noise[0], bench.noise[2]) and not torch.equal(*bench.noise[:2])
    pictures = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 8, 8)
    noisy = begin(replace(bench, pictures=pictures), "strength 0.7")
    clean = noisy - start_level(0.7) * bench.noise
    assert clean[:, 0, 0, 0].tolist() == pytest.approx([4, 5, 0, 1, 2, 3], abs=1e-5)


@slow
def test_the_command_places_a_sampler(tmp_path, monkeypatch, capsys):
    """On the committed board, with the references that stand beside it."""
    monkeypatch.setattr("minisd.lab.board.CALLS", (5, 7))
    (tmp_path / "own.py").write_text(
        "from minisd.samplers import k_dpmpp_2\n\ndef mine(predict_eps, x, sigmas):\n"
        "    yield from k_dpmpp_2(predict_eps, x, sigmas)\n"
    )
    assert main(["lab", f"{tmp_path}/own.py:mine", "--board", "--reference", "60"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " place " in line]
    assert len(lines) == 3 * 2 * 2
    board_file = committed("board.csv")
    assert board_file is not None
    board = from_csv(board_file.read_text())
    known = {(e.model, e.start, e.calls): e for e in board if e.sampler == "k_dpmpp_2"}
    error = float(lines[0].split("calls")[1].split("±")[0])
    model = lines[0].split(" noise ")[0].strip()
    assert error == pytest.approx(known[model, "noise", 5].error, rel=0.02)  # another CPU's float32


@slow
def test_the_command_makes_a_board(tmp_path, monkeypatch, capsys, tiny_path):
    monkeypatch.setattr("minisd.lab.board.CALLS", (5,))
    monkeypatch.setattr(
        "minisd.cli.laboratory.SAMPLERS", {name: SAMPLERS[name] for name in ("k_euler", "lcm")}
    )
    words = ["lab", "--board", str(tmp_path), "--model", str(tiny_path), "--reference", "20"]
    for _ in range(2):  # the second board replaces the first
        assert main(words) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["board.csv", "board.md", "board.safetensors", "board.svg"]
    assert "k_euler" in (tmp_path / "board.md").read_text()
    (tmp_path / "board.csv").write_text("mine")
    assert main(words) == 0
    assert (tmp_path / "board.csv").read_text() == "mine" and (tmp_path / "board-2.csv").exists()


def test_lab_needs_something_to_do(capsys):
    assert main(["lab"]) == 2
    assert "lab needs a SAMPLER, --board or --report" in capsys.readouterr().err


# ---- strong order --------------------------------------------------------------------------------


def euler_a_of(draw):
    def euler_a(predict_eps, x, sigmas, generator):
        for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
            eps = predict_eps(x, sigma)
            down, up = ancestral_step(sigma, sigma_next, 1.0)
            x_next = x + (down - sigma) * eps + up * draw(x, generator, sigma, sigma_next)
            yield Step(i, sigma, sigma_next, x, eps, x_next)
            x = x_next

    return euler_a


def strong_line(sampler, **theory):
    (line,) = check_strong(Subject(sampler, replace(theory_of("k_euler_a"), **theory)))
    return line


def test_strong_order_of_right_and_wrong_noise():
    """The sign, the levels and the order of the draws: each mistake loses the order."""
    right = strong_line(euler_a_of(fresh_noise))
    assert right.verdict == "pass" and right.value == pytest.approx(1, abs=0.1)
    wrong = euler_a_of(lambda x, rng, a, b: fresh_noise(x, rng, a, (a + b) / 2))
    assert strong_line(wrong).verdict == "fail"
    unaware = strong_line(euler_a_of(lambda x, rng, a, b: fresh_noise(x, rng)))
    assert unaware.verdict == "measured" and "sigma_next" in unaware.expected
    assert not check_strong(Subject(SAMPLERS["k_euler"]))


def test_a_sampled_path_has_the_law_of_a_brownian_path():
    """Variances are lengths, parts add up, and parts that do not overlap are independent."""
    x = torch.zeros(1, 4, 48, 48, dtype=torch.float64)
    path = SampledPath(x)
    a, b, c = (path(x, *levels) for levels in ((14.0, 3.0), (3.0, 1.0), (14.0, 1.0)))
    assert rms(c * 13**0.5 - a * 11**0.5 - b * 2**0.5) < 1e-12
    for part in (a, b, c):  # 9216 numbers: the standard error is 0.7 %
        assert rms(part) == pytest.approx(1, abs=0.03)
    assert abs((a * b).mean().item()) < 0.04
    with pytest.raises(ValueError, match="does not reach"):
        path(x, 20.0, 1.0)


@slow
def test_strong_order_on_the_path_that_pictures_use():
    """BrownianPath is slow, so the certificate samples a path of the same law."""
    x = latent(HIGH, 0.3, 0.5, size=16)
    path = BrownianPath(3)
    steps = (32, 64, 128)
    ends = [
        all_steps(SAMPLERS["k_euler_a"], GAUSSIAN, x, plain_schedule(n), path)[-1].x_next
        for n in steps
    ]
    gaps = [(n, rms(a - b)) for n, a, b in zip(steps, ends, ends[1:])]
    assert log_slope(gaps) == pytest.approx(1, abs=0.2)


# ---- formulas ------------------------------------------------------------------------------------


def test_defects_are_those_of_the_papers():
    """Computed here in another way: by exact integrals of polynomials in lambda."""
    import numpy as np

    places = np.array(LAMBDAS)
    h = np.diff(places)

    def exact(coefficients, start, end):
        """The integral of e^(lambda - end) times a polynomial in lambda, by 40-point Gauss."""
        nodes, weights = np.polynomial.legendre.leggauss(40)
        points = (start + end) / 2 + (end - start) / 2 * nodes
        values = np.polyval(coefficients, points) * np.exp(points - end)
        return (end - start) / 2 * (weights @ values)

    def total(polynomials):
        """x / sigma at the end of the steps, for the polynomial of x0 that each assumes."""
        parts = [
            exact(p, places[i], places[i + 1]) * np.exp(places[i + 1])
            for i, p in enumerate(polynomials)
        ]
        return sum(parts) * np.exp(-places[-1])

    x0 = places**2
    lines = [[x0[0]]] + [
        np.polyfit(places[i - 1 : i + 1], x0[i - 1 : i + 1], 1) for i in range(1, 4)
    ]
    middles = [[x0[0]]] + [[np.polyval(lines[i], places[i] + h[i] / 2)] for i in range(1, 4)]
    truth = total([[1.0, 0.0, 0.0]] * 4)
    expected = {
        "k_euler": total([[value] for value in x0[:4]]) - truth,
        "res_multistep": total(lines) - truth,
        "dpmpp_2m": total(middles) - truth,
    }
    for name, value in expected.items():
        assert defect(Subject(SAMPLERS[name])) == pytest.approx(value, abs=1e-12)


def test_the_formula_tells_methods_of_one_order_apart():
    right = Subject(SAMPLERS["uni_pc"], theory_of("uni_pc"))
    wrong = Subject(SAMPLERS["uni_pc_bh2"], theory_of("uni_pc"))
    assert [check_formula(subject)[0].verdict for subject in (right, wrong)] == ["pass", "fail"]
    assert theory_of("uni_pc", {"order": 2}).defect is None
    assert theory_of("dpmpp_sde", {"eta": 0.5}).defect == theory_of("dpmpp_sde").defect
    assert Parabola().both(torch.zeros(1), 1.0)[0].item() == 0


# ---- mutants of more_samplers --------------------------------------------------------------------


def test_every_mutant_of_more_samplers_applies():
    assert len(MORE_BUGS) == 103
    assert len({(bug.sampler, bug.label) for bug in MORE_BUGS}) == len(MORE_BUGS)
    for bug in MORE_BUGS[::10]:
        with_bug(bug)


@pytest.mark.slow
@pytest.mark.parametrize("every", [30, pytest.param(3, marks=slow)])
def test_the_certificate_detects_95_percent_of_them(every):
    bugs = MORE_BUGS[::every]
    assert sum(1 for bug in bugs if failed_check(bug)) >= 0.95 * len(bugs)


def test_schedules_of_the_board_are_within_the_trained_levels():
    for start in STARTS.values():
        levels = levels_from(start_level(start), 7)
        assert levels[0] <= HIGH * (1 + 1e-12) and levels[-2] == pytest.approx(LOW)
    assert len(SCHEDULES["karras"](7)) == len(levels)


def test_certificates_name_the_new_lines():
    checks = [check_formula, check_strong]
    lines = certify(SAMPLERS["k_euler_a"], theory=theory_of("k_euler_a"), checks=checks).lines
    assert [line.verdict for line in lines] == ["measured", "pass"]
