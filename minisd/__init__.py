"""minisd: Stable Diffusion 1.x, small enough to read and exact enough to trust."""

from minisd import dialects, more_samplers, pictures
from minisd.checkpoint import CheckpointError, inspect, load
from minisd.exact_mode import InexactError, exact
from minisd.images import CONVERSIONS
from minisd.img2img import img2img
from minisd.inpaint import inpaint
from minisd.recipes import DIALECTS, Recipe, read_recipe
from minisd.run import Decoded, Encoded, Noised, Result
from minisd.samplers import FACTS, SAMPLERS, Step
from minisd.schedule import SCHEDULES, model, start_index
from minisd.stable_diffusion import StableDiffusion
from minisd.sweeps.driver import sweep
from minisd.txt2img import txt2img

# The rooms around the core add their entries to the core's tables here.
SAMPLERS |= more_samplers.SAMPLERS
FACTS |= more_samplers.FACTS
SCHEDULES |= more_samplers.SCHEDULES | {"file": model}  # of a file without one of its own
CONVERSIONS += pictures.CONVERSIONS
DIALECTS |= dialects.DIALECTS

__all__ = [
    "DIALECTS",
    "SAMPLERS",
    "SCHEDULES",
    "CheckpointError",
    "Decoded",
    "Encoded",
    "InexactError",
    "Noised",
    "Recipe",
    "Result",
    "StableDiffusion",
    "Step",
    "exact",
    "img2img",
    "inpaint",
    "inspect",
    "load",
    "read_recipe",
    "start_index",
    "sweep",
    "txt2img",
]
