"""A run of the studio: drawn frame by frame, each sent as soon as it is computed."""

import base64
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from PIL import Image

from minisd.explorer.engine import Task
from minisd.explorer.page import STRENGTHS, ledger_data, settings_data
from minisd.explorer.runs import Run, prompt_texts
from minisd.explorer.tiles import latent_tiles, picture_tile, word_shares, words_of_run
from minisd.observe.tiles import data_uri
from minisd.observe.trace import Trace
from minisd.observe.watch import together
from minisd.recipes import Recipe, prepare
from minisd.run import Encoded, Event, Noised
from minisd.samplers import Step
from minisd.schedule import start_index
from minisd.stable_diffusion import StableDiffusion

MOST_RUNS = 24  # that are kept for the page's sliders and for saving
SMALL = 256  # a model of a smaller native size decodes a step in less time than it draws one


@dataclass(frozen=True)
class KeptRun:
    """A finished run, with what can be saved of it."""

    run: Run
    trace: Trace
    drawing: bytes  # the init image, as a PNG file


class Shelf:
    """The last finished runs, by random names."""

    def __init__(self) -> None:
        self.runs: OrderedDict[str, KeptRun] = OrderedDict()

    def keep(self, kept: KeptRun) -> str:
        name = token_hex(8)
        self.runs[name] = kept
        while len(self.runs) > MOST_RUNS:
            self.runs.popitem(last=False)
        return name

    def get(self, name: Any) -> KeptRun:
        """Raises ValueError if it is not kept."""
        if not isinstance(name, str) or name not in self.runs:
            raise ValueError("this run is not kept any more: draw it again")
        self.runs.move_to_end(name)
        return self.runs[name]


def live_run(
    sd: StableDiffusion,
    recipe: Recipe,
    drawing: Image.Image,
    shelf: Shelf,
    task: Task,
    python_lines: Callable[[Recipe], str],
) -> None:
    """Draw the recipe on a drawing, and send what happens.

    The messages are `start`; `frame` for the init image, each step and the result, with its tiles;
    `picture` for a frame that was decoded later than it was drawn; `note` for a warning; `end`.
    Raises Cancelled, and what a run raises.
    """

    def note(message: Warning | str, *_: object, **__: object) -> None:
        task.send({"kind": "note", "text": str(message)})

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = note
        job = prepare(recipe, sd, drawing)
        try:
            texts = prompt_texts(recipe.prompt)
        except ValueError:  # a blend: its words' attention cannot be separated
            texts = []
        run, trace = Run(job, texts), Trace(sd, trace_settings(job.recipe))
        steps = recipe.steps
        task.send(
            {
                "kind": "start",
                "data": settings_data(job) | {"words": words_of_run(run)},
                "strength": recipe.strength,
                # of each strength on the slider
                "steps_run": [steps - start_index(steps, strength) for strength in STRENGTHS],
                "lines": python_lines(job.recipe),
            }
        )
        # Within a call of the network, too, a cancelled run ends at the next layer.
        modules = [*sd.unet.modules(), *sd.vae.modules()]
        hooks = [module.register_forward_pre_hook(task.check) for module in modules]
        try:
            draw(run, trace, task)
            kept = KeptRun(run, trace, png(drawing))
            task.send({"kind": "end", "run": shelf.keep(kept)})
            for frame in range(len(run.steps), -1, -1):
                if frame not in run.pictures:
                    send_picture(run, frame, task)
        finally:
            for hook in hooks:
                hook.remove()


def draw(run: Run, trace: Trace, task: Task) -> None:
    is_small = run.job.sd.native_size < SMALL

    def observe(event: Event) -> None:
        task.check()
        if isinstance(event, Encoded):
            send_frame(run, 0, task)
        elif isinstance(event, Noised):
            task.send({"kind": "noised", "ledger": ledger_data(run.ledger)})
        elif isinstance(event, Step):
            step = len(run.steps)
            if is_small and step > 1:  # the first step is shown before it is decoded
                send_picture(run, step, task)
            send_frame(run, step, task)

    with trace:
        run.draw(together(trace, observe))
    send_picture(run, len(run.steps) + 1, task)
    send_frame(run, len(run.steps) + 1, task)


def send_frame(run: Run, frame: int, task: Task) -> None:
    tiles = {view: uri(tile) for view, tile in latent_tiles(run, frame).items()}
    is_step = 0 < frame <= len(run.steps) and "eps" in tiles
    shares = word_shares(run, frame) if is_step else []
    message = {"frame": frame, "tiles": tiles, "shares": shares, "ledger": ledger_data(run.ledger)}
    task.send({"kind": "frame", **message})


def send_picture(run: Run, frame: int, task: Task) -> None:
    task.send({"kind": "picture", "frame": frame, "tile": uri(picture_tile(run, frame))})


def uri(image: Image.Image) -> str:
    """The picture as a data URI: without loss and quickly if it is small, else as explorer's."""
    if max(image.size) > 64:
        return data_uri(image, exact=False)
    return f"data:image/png;base64,{base64.b64encode(png(image, 1)).decode()}"


def png(image: Image.Image, level: int = 6) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=level)
    return data.getvalue()


def trace_settings(recipe: Recipe) -> dict[str, Any]:
    """What a trace keeps of the recipe, as `minisd img2img` names it."""
    names = ("prompt", "image", "strength", "steps", "sampler", "seed", "schedule", "guidance")
    values = {name: getattr(recipe, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
