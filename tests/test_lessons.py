"""The lessons: each notebook runs unsolved and solved, and its checks name a beginner's mistakes.

The cells run in this process, one after the other, as a kernel would run them; one notebook runs in
a real kernel too. The lessons' own cells assert the numbers of their prose.
"""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import minisd
from minisd.cli.main import main
from minisd.lessons import EXERCISES, Verdict, check, my_drawing
from minisd.lessons.checks import OPEN, RIGHT, WRONG

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "lessons"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]-*.py"))
SPEC = importlib.util.spec_from_file_location("make_lessons", FOLDER / "make.py")
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


def cells_of(source: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in jupytext.read(source).cells if cell.cell_type == kind]


def is_stub(cell: nbformat.NotebookNode) -> bool:
    return "exercise" in cell.metadata.get("tags", [])


def names_in(source: str) -> list[str]:
    """The functions and variables that a cell defines."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            targets = ast.walk(node.targets[0])
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def solutions() -> dict[str, str]:
    """The source of each solution, by the names that it defines."""
    text = (FOLDER / "solutions.py").read_text(encoding="utf-8")
    sources = [ast.get_source_segment(text, node) for node in ast.parse(text).body]
    return {name: source for source in sources for name in names_in(source)}


# ---- the notebooks -------------------------------------------------------------------------------


def run(source: Path, solved: bool) -> list[Verdict]:
    """Run a lesson's cells in order. Returns what its checks say. Displayed values are rendered."""
    answers, names, verdicts = solutions(), {"__name__": "__main__"}, []
    for cell in cells_of(source):
        text = cell.source
        if solved and is_stub(cell):
            text = "\n".join(dict.fromkeys(answers[name] for name in names_in(text)))
        body = ast.parse(text).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), source.name, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), source.name, "eval"), names)
            for method in ("_repr_html_", "_repr_svg_", "_repr_png_"):
                if hasattr(value, method):
                    assert getattr(value, method)()
            if isinstance(value, Verdict):
                verdicts.append(value)
    return verdicts


@pytest.mark.slow
@pytest.mark.parametrize("solved", [False, True], ids=["unsolved", "solved"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_lesson(source, solved, emoji, monkeypatch, tmp_path):
    monkeypatch.setattr(minisd, "load", lambda: emoji)
    monkeypatch.chdir(tmp_path)
    verdicts = run(source, solved)
    assert len(verdicts) == 3
    assert {verdict.kind for verdict in verdicts} == {RIGHT if solved else OPEN}, verdicts


@pytest.mark.slow
def test_a_lesson_in_a_kernel_with_a_drawing_of_ones_own(tmp_path):
    """Its cells assert nothing that holds for the course's drawing only."""
    Image.open(ROOT / "docs" / "pictures" / "fire-sketch.png").save(tmp_path / "my-drawing.png")
    book = make.notebook(SOURCES[0])
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in book.cells for output in cell.get("outputs", [])]
    plain = [output.data["text/plain"] for output in shown if output.output_type != "stream"]
    assert sum(text.startswith(OPEN) for text in plain) == 3
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_shipped_notebook_is_made_of_its_source(source):
    book = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(book)
    made = make.notebook(source)
    assert [(c.cell_type, c.source) for c in book.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ]
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert len(book.cells) <= 35


def test_the_shipped_notebooks_are_small():
    assert len(SOURCES) == 10
    assert sum(path.with_suffix(".ipynb").stat().st_size for path in SOURCES) < 6e6


NUMBER = re.compile(r"(?<![\w.])(\d+\.\d+)(?![\w.]*\d)|(\d+(?:\.\d+)?) %")


def numbers_of_the_prose(source: Path) -> list[list[str]]:
    """Every decimal fraction and every percentage, in the forms that code may give it.

    Code in the prose, as in hints, is left out. A percentage may be asserted as a fraction.
    """
    numbers = []
    for cell in cells_of(source, "markdown"):
        prose = re.sub(r"`[^`]*`|<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        for decimal, share in NUMBER.findall(prose):
            numbers.append([decimal] if decimal else [share, f"{float(share) / 100:g}"])
    return numbers


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_numbers_in_the_prose_are_in_the_code(source):
    """As an input of the cells, or in their assertions."""
    code = "\n".join(cell.source for cell in cells_of(source) if not is_stub(cell))
    for forms in numbers_of_the_prose(source):
        assert any(re.search(rf"(?<![\d.]){re.escape(x)}(?!\d)", code) for x in forms), forms


def test_the_prose_has_numbers_to_check():
    assert sum(len(numbers_of_the_prose(source)) for source in SOURCES) > 50


def test_stubs_checks_and_solutions_belong_together():
    checked, stubs = [], []
    for source in SOURCES:
        cells = cells_of(source)
        for stub, control in zip(cells, cells[1:]):
            if is_stub(stub):
                stubs += names_in(stub.source)
                checked += re.findall(r'^check\("(\w+)", ', control.source)
    assert len(checked) == 30
    assert sorted(checked) == sorted(EXERCISES)
    assert sorted(stubs) == sorted(solutions())


# ---- what the checks say -------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXERCISES)
def test_each_listed_mistake_is_named(name):
    """And the right answer is right."""
    exercise = EXERCISES[name]
    if exercise.right is not None:
        assert check(name, exercise.right) == Verdict(RIGHT, exercise.praise)
    for reason, mistake in exercise.mistakes:
        assert check(name, mistake) == Verdict(WRONG, reason)


def insert_in_place(x0, noise, sigma):
    x0 += sigma * noise
    return x0


def insert_squared(x0, noise, sigma):
    variance = sigma * sigma
    return x0 + noise.mul(variance)


def insert_twice(x0, noise, sigma):
    return x0 + 2 * sigma * noise


def measure_each(x, x0, noise):
    a = torch.dot(x.flatten(), x0.flatten()) / torch.dot(x0.flatten(), x0.flatten())
    b = torch.dot(x.flatten(), noise.flatten()) / torch.dot(noise.flatten(), noise.flatten())
    return a.item(), b.item()


def measure_spread(x, x0, noise):
    return (x.std() / x0.std()).item(), ((x - x0).std() / noise.std()).item()


def measure_one(x, x0, noise):
    return float((noise * (x - x0)).sum() / noise.square().sum())


def guess_by_spread(x, sigma, mean, std):
    share = std / (std + sigma)
    return share * x + (1 - share) * mean


def euler_that_keeps_eps(predict_eps, x, sigmas):
    eps = predict_eps(x, sigmas[0])
    for i in range(len(sigmas) - 1):
        x = x + (sigmas[i + 1] - sigmas[i]) * eps
    return x


def euler_one_short(predict_eps, x, sigmas):
    for i in range(len(sigmas) - 2):
        x = x + (sigmas[i + 1] - sigmas[i]) * predict_eps(x, sigmas[i])
    return x


def euler_too_long(predict_eps, x, sigmas):
    for i in range(len(sigmas)):
        x = x + (sigmas[i + 1] - sigmas[i]) * predict_eps(x, sigmas[i])
    return x


def euler_at_the_end(predict_eps, x, sigmas):
    for i in range(1, len(sigmas)):
        x = x + (sigmas[i] - sigmas[i - 1]) * predict_eps(x, sigmas[i])
    return x


def euler_in_place(predict_eps, x, sigmas):
    for i in range(1, len(sigmas)):
        x += (sigmas[i] - sigmas[i - 1]) * predict_eps(x, sigmas[i - 1])
    return x


def ddim_with_sigma(y, eps, abar, abar_next):
    sigma = ((1 - abar) / abar) ** 0.5
    y0 = (y - sigma * eps) / abar**0.5
    return abar_next**0.5 * y0 + (1 - abar_next) ** 0.5 * eps


def ddim_without_roots(y, eps, abar, abar_next):
    y0 = (y - (1 - abar) * eps) / abar
    return abar_next * y0 + (1 - abar_next) * eps


def comfyui_shortened(program, steps, strength):
    run = int(round(steps * strength, 9))
    return min(run + 1, steps) if program == "a1111" else run


def karras_upwards(steps, rho):
    low, high = 0.029167 ** (1 / rho), 14.61464 ** (1 / rho)
    rising = [(low + i / (steps - 1) * (high - low)) ** rho for i in range(steps)]
    return [0.0, *rising]


def karras_without_zero(steps, rho):
    return [s for s in minisd.SCHEDULES["karras"](steps) if s > 0] if rho == 7 else [1.0] * steps


def even_weights(sigma_last, sigma, sigma_next):
    h = sigma_next - sigma
    return 3 / 2 * h, -h / 2


def two_m_without_memory(predict_eps, x, sigmas):
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        x0 = x - sigma * predict_eps(x, sigma)
        x = x0 + sigma_next / sigma * (x - x0)
    return x


def two_m_that_looks_twice(predict_eps, x, sigmas):
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        eps = predict_eps(x, sigma)
        if sigma_next > 0:
            eps = (eps + predict_eps(x + (sigma_next - sigma) * eps, sigma_next)) / 2
        x = x + (sigma_next - sigma) * eps
    return x


def ancestral_by_difference(sigma, sigma_next):
    up = sigma_next * (1 - sigma_next**2 / sigma**2) ** 0.5
    return sigma_next - up, up


def merge_by_halves(noise_1, noise_2, a, b, c):
    return (noise_1 + noise_2) / 2**0.5


def guide_from_the_words(eps_uncond, eps_cond, scale):
    return eps_cond + scale * (eps_cond - eps_uncond)


def rescale_the_batch(eps_uncond, eps_cond, scale, phi):
    eps = eps_uncond + scale * (eps_cond - eps_uncond)
    return phi * eps * eps_cond.std() / eps.std() + (1 - phi) * eps


def factor_as_std(latents):
    return torch.cat([z.flatten() for z in latents]).std().item()


def factor_as_mean(latents):
    return sum(1 / z.std().item() for z in latents) / len(latents)


def map_without_bias(latents, colours):
    return torch.linalg.lstsq(latents, colours).solution, torch.zeros(3)


def shares_without_scale(q, k, heads):
    q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
    return (q @ k.mT).softmax(-1).mean(1)


def shares_over_places(q, k, heads):
    q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2).mean(1)


def emphasize_in_place(states, empty, places, weight):
    states[:, places] = empty[:, places] + weight * (states[:, places] - empty[:, places])
    return states


def emphasize_by_product(states, empty, places, weight):
    result = states.clone()
    result[:, places] *= weight
    return result


BEGINNERS: list[tuple[str, Any, str]] = [
    ("insert", insert_in_place, "changes its argument x0"),
    ("insert", insert_squared, "variance, sigma squared"),
    ("insert", insert_twice, "gains of picture and noise are 1 and 6, not 1 and 3"),
    ("insert", lambda x0, noise, sigma: x0 + noise, "multiply it by sigma"),
    ("insert", lambda x0, noise, sigma: (x0 + sigma * noise).mean(), "the shape ()"),
    ("insert", lambda x0, noise: x0 + noise, "raises TypeError"),
    ("insert", 2.918, "needs the function itself"),
    ("measure", measure_each, "solve for both together"),
    ("measure", measure_spread, "standard deviations are compared"),
    ("measure", measure_one, "it returns 3, not (1, 3)"),
    ("slip", ("B", 1), "levels added and expected agree"),
    ("slip", ("C", 1.6909), "1.6909 is not the number, though C is the program: find both"),
    ("clean", lambda x, eps, sigma: x - eps, "the noise in x is sigma * eps"),
    ("best_guess", guess_by_spread, "square them"),
    ("scaled", ("A", 0.331), "gain of the noise"),
    ("euler", euler_that_keeps_eps, "Predict it again"),
    ("euler", euler_one_short, "last step is missing"),
    ("euler", euler_too_long, "raises IndexError"),
    ("euler", euler_at_the_end, "passed sigma_next"),
    ("euler", euler_in_place, "changes its argument x"),
    ("ddim_step", ddim_with_sigma, "sigma stands where sqrt(1 - abar) belongs"),
    ("ddim_step", ddim_without_roots, "square roots are missing"),
    ("first_step", lambda steps, strength: steps - int(steps * strength), "28.999999999999996"),
    ("first_step", lambda steps, strength: int(steps * strength + 1e-6), "that are run"),
    ("steps_run", comfyui_shortened, "lengthens the schedule"),
    ("short", ("B", 21), "21 is the right count"),
    ("karras_levels", karras_upwards, "levels rise"),
    ("better", minisd.SCHEDULES["karras"], "of the schedule model is"),
    ("better", karras_without_zero, "raises TypeError"),
    ("better", lambda steps: [14.6146] * 9, "must fall"),
    ("better", lambda steps: ["much", "less"], "raises ValueError"),
    ("better", lambda steps: list(range(8, -1, -1)), "pure noise has 14.6146"),
    ("two_weights", even_weights, "steps of one length only"),
    ("two_m", two_m_without_memory, "Euler's method"),
    ("two_m", two_m_that_looks_twice, "2 times in a step"),
    ("ancestral", ancestral_by_difference, "add as squares"),
    ("merge", merge_by_halves, "two steps of one length only"),
    ("guide", guide_from_the_words, "Imagen"),
    ("rescale", rescale_the_batch, "the whole batch"),
    ("scale_factor", factor_as_std, "one over it"),
    ("scale_factor", factor_as_mean, "one number for all latents"),
    ("rgb_map", map_without_bias, "there is no bias"),
    ("shares", shares_without_scale, "not divided by sqrt(d)"),
    ("shares", shares_over_places, "over all words, sum to 1"),
    ("emphasize", emphasize_in_place, "changes its argument states"),
    ("emphasize", emphasize_by_product, "as AUTOMATIC1111 does"),
]


def test_what_beginners_write_is_wrong_for_a_reason_that_names_it():
    assert len(BEGINNERS) >= 20
    for name, answer, words in BEGINNERS:
        verdict = check(name, answer)
        assert verdict.kind == WRONG, (name, words, verdict)
        assert words in verdict.text, (name, words, verdict)


def test_what_is_not_solved_yet():
    def empty(x0, noise, sigma):
        """Only a text."""

    def printing(x0, noise, sigma):
        (x0 + sigma * noise).sum()  # no return

    def refusing(x0, noise, sigma):
        raise NotImplementedError

    for answer in (empty, printing, refusing, None, ..., lambda x0, noise, sigma: ...):
        assert check("insert", answer).kind == OPEN
    for answer in (None, (..., ...), ("C", ...), (None, 1)):
        assert check("slip", answer).kind == OPEN
    assert repr(check("slip", (..., 1))) == "not solved yet: a part of the answer is still empty"
    with pytest.raises(ValueError, match="there is no exercise 'slop'; choose from insert, "):
        check("slop", 1)


def test_how_a_verdict_looks():
    verdict = check("slip", ("A", 1))
    assert repr(verdict) == "wrong, because program A makes no mistake"
    assert "wrong, because program A makes no mistake</div>" in verdict._repr_html_()
    assert "&lt;b&gt;" in Verdict(WRONG, "<b>")._repr_html_()
    assert repr(check("slip", ("C", 1))).startswith("right: C adds the noise of the level before")


# ---- the drawing and the command -----------------------------------------------------------------


def test_my_drawing(tmp_path):
    own = tmp_path / "my-drawing.png"
    house = my_drawing(own, 64)
    assert house.size == (64, 64) and house.getpixel((32, 20)) != (255, 255, 255)
    Image.new("RGBA", (300, 200), (10, 200, 30, 255)).save(own)
    assert my_drawing(own, 64).getpixel((5, 5)) == (10, 200, 30)
    Image.new("RGBA", (30, 40), (0, 0, 0, 0)).save(own)
    assert my_drawing(own, 64).getpixel((5, 5)) == (255, 255, 255)
    own.write_bytes(b"not a picture")
    with pytest.raises(OSError, match="cannot be read as a picture"):
        my_drawing(own, 64)


def test_the_command_copies_and_overwrites_nothing(tmp_path, capsys):
    folder = tmp_path / "course"
    assert main(["lessons", str(folder)]) == 0
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [*(path.with_suffix(".ipynb").name for path in SOURCES), "solutions.py"]
    first = folder / names[0]
    assert f"jupyter lab {first}" in capsys.readouterr().out
    assert first.read_bytes() == SOURCES[0].with_suffix(".ipynb").read_bytes()

    first.write_text("my answers")
    (folder / names[1]).unlink()
    assert main(["lessons", str(folder)]) == 0
    assert first.read_text() == "my answers"
    assert (folder / names[1]).is_file()
    assert "kept, because they were there: 01-the-line.ipynb, 03-" in capsys.readouterr().out
    assert main(["lessons", str(first)]) == 2
    assert "it is a file, not a folder" in capsys.readouterr().err


def test_the_wheel_holds_the_lessons():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    included = settings.partition("wheel.force-include]")[2].partition("\n[")[0]
    names = [*(path.with_suffix(".ipynb").name for path in SOURCES), "solutions.py"]
    for name in names:
        assert f'"docs/lessons/{name}" = "minisd/lessons/notebooks/{name}"\n' in included
