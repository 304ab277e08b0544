"""Pins for pytest: pictures and traces that must be drawn again, bit for bit or within a tolerance.

    def test_fire(minisd_pin):
        minisd_pin("fire.png")                      # drawn again from the settings inside it

    def test_my_sampler(minisd_pin, minisd_model):
        result = minisd.txt2img(minisd_model, "fire", sampler=mine, steps=4, seed=1)
        minisd_pin("mine.png", result, tolerance=2)

Installed with minisd; docs/reproduce.md shows how to use it. `pytest --minisd-update` writes pins
anew instead of comparing them.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image

from minisd.checkpoint import load
from minisd.exact_mode import exact, is_exact
from minisd.files import never, png_bytes, write_file
from minisd.images import Picture, open_image
from minisd.observe.trace import Trace
from minisd.observe.trace_file import load_trace, save_trace
from minisd.proof.record import KEY, picture_hash, read_enclosures, record_of
from minisd.proof.verdict import distance, verify
from minisd.recipes import Recipe, prepare
from minisd.recipes.dream import dream_line, read_dream
from minisd.recipes.metadata import Model, read_chunks, texts, to_recipe, usable
from minisd.run import Result
from minisd.stable_diffusion import StableDiffusion

Pin = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minisd")
    group.addoption("--minisd-update", action="store_true", help="write the pins of minisd anew")
    group.addoption("--minisd-model", metavar="FILE",
                    help="the checkpoint for pins (minisd's own weights)")  # fmt: skip


@pytest.fixture(scope="session")
def minisd_model(request: pytest.FixtureRequest) -> StableDiffusion:
    """The model that pins are drawn with."""
    return load(request.config.getoption("--minisd-model"))


@pytest.fixture
def minisd_pin(request: pytest.FixtureRequest) -> Pin:
    """The function `pin(name, result, ...)`, see Pins.check."""
    update = request.config.getoption("--minisd-update")
    return Pins(request.path.parent, update, request).check


class Pins:
    def __init__(self, folder: Path, update: bool, request: pytest.FixtureRequest):
        self.folder, self.update, self.request = folder, update, request

    def check(
        self,
        name: str,
        result: Result | Image.Image | Recipe | Trace | None = None,
        *,
        tolerance: float = 0,
        image: Picture | None = None,
        mask: Picture | None = None,
        sd: StableDiffusion | None = None,
    ) -> None:
        """Compare with the pin of this name, beside the test's file. Fails with what differs.

        result     what the test drew; or a recipe, which is drawn in exact mode. None: the pin's
                   own recipe is drawn again, in exact mode if it was drawn in exact mode
        tolerance  of a .png: by how much of 255 a value may be off. Of a .safetensors (a trace):
                   how far x may be at any step, relative to its largest value. 0 is bit for bit
        image, mask  the init image and the mask, where the pin does not hold them
        sd         the model; None takes the fixture minisd_model
        """
        path = self.folder / name
        if not path.exists() and not (self.update and result is not None):
            pytest.fail(f"there is no pin {path}: draw it with --minisd-update, from a recipe")
        if isinstance(result, Trace) or path.suffix == ".safetensors":
            self.check_trace(path, result, tolerance, image)
        else:
            self.check_picture(path, result, tolerance, image, mask, sd)

    def model(self, sd: StableDiffusion | None) -> StableDiffusion:
        return self.request.getfixturevalue("minisd_model") if sd is None else sd

    def check_picture(
        self,
        path: Path,
        result: Result | Image.Image | Recipe | None,
        tolerance: float,
        image: Picture | None,
        mask: Picture | None,
        sd: StableDiffusion | None,
    ) -> None:
        if result is None and not self.update:
            verdict = verify(path, self.model(sd), None, image, mask)
            if not verdict.values or verdict.farthest > tolerance:
                pytest.fail(f"{path.name}: {verdict.line()}", pytrace=False)
            return
        chunks: dict[str, str] = {}
        if result is None or isinstance(result, Recipe):
            stored_image, stored_mask = read_enclosures(path) if path.exists() else (None, None)
            image = stored_image if image is None else image
            mask = stored_mask if mask is None else mask
            recipe = result or to_recipe(read_chunks(path), str(path), None)
            drawn, chunks = draw_exactly(recipe, self.model(sd), image, mask)
        else:
            drawn = result.image if isinstance(result, Result) else result
        if self.update:
            # The user asked for this very file to be written anew.
            replaceable = (lambda _: True) if path.exists() else never
            write_file(path, png_bytes(drawn, chunks), replaceable)
            return
        values, off, farthest = distance(open_image(path).convert("RGB"), drawn.convert("RGB"))
        if not values or farthest > tolerance:
            distances = f"{off:,} of {values:,} values differ, by {farthest} at most"
            pytest.fail(
                f"{path.name}: {distances if values else 'the sizes differ'}", pytrace=False
            )

    def check_trace(
        self, path: Path, result: Trace | None, tolerance: float, image: Picture | None
    ) -> None:
        if result is None:
            pin = load_trace(path)
            result = traced_again(pin, self.model(None), image, path)
        if self.update:
            save_trace(result, path)
            return
        pin = load_trace(path)
        if len(pin.x) != len(result.x):
            pytest.fail(f"{path.name}: {len(result.x)} steps, and the pin has {len(pin.x)}")
        for i, (x, pinned) in enumerate(zip(result.x, pin.x, strict=True)):
            if x.shape != pinned.shape:
                pytest.fail(f"{path.name}: x has the shape {tuple(x.shape)}", pytrace=False)
            off = float((x.cpu() - pinned).abs().max() / pinned.abs().max())
            if off > tolerance or (tolerance == 0 and not torch.equal(x.cpu(), pinned)):
                place = f"step {i + 1} of {len(pin.x)}, sigma {pin.sigma[i]:.4f}"
                pytest.fail(f"{path.name}: x is off by {off:.1e} at {place}", pytrace=False)


def draw_exactly(
    recipe: Recipe, sd: StableDiffusion, image: Picture | None, mask: Picture | None
) -> tuple[Image.Image, dict[str, str]]:
    """The recipe's picture in exact mode, and its text chunks."""
    with exact():
        job = prepare(recipe, sd, image, mask)
        drawn = job.draw().image
        model = Model(sd.name, dtype="float32", version=version("minisd"))
        record = record_of(job, job.recipe, model, drawn)
    return drawn, texts(job.recipe, drawn.size, model) | {KEY: json.dumps(record)}


def traced_again(pin: Trace, sd: StableDiffusion, image: Picture | None, path: Path) -> Trace:
    """The run of a trace whose settings have `line` and `exact`, as trace_of makes it."""
    line = pin.settings.get("line")
    if not isinstance(line, str):
        pytest.fail(f"{path.name} does not say its recipe: record it with trace_of")
    fields, _ = usable(read_dream(line)[0])
    with exact() if pin.settings.get("exact") and not is_exact() else nullcontext():
        return trace_of(Recipe(**fields), sd, image)


def trace_of(recipe: Recipe, sd: StableDiffusion, image: Picture | None = None) -> Trace:
    """The trace of a recipe's run, with the recipe in its settings, so that it can be a pin."""
    settings = {"line": dream_line(recipe), "exact": is_exact()}
    with Trace(sd, settings) as trace:
        job = prepare(recipe, sd, image)
        job.draw(trace)
    return trace


__all__ = ["Pins", "minisd_model", "minisd_pin", "picture_hash", "trace_of"]
