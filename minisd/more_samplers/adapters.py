"""Samplers of other libraries, run as they are.

    minisd img2img ... -A k_diffusion.sampling:sample_dpmpp_2m
    minisd lab diffusers:LMSDiscreteScheduler

Two kinds are recognized: functions with the signature of k-diffusion and ComfyUI (`model, x,
sigmas, extra_args, callback, ...`), and scheduler classes of diffusers (`set_timesteps`, `step`,
`scale_model_input`). In Python: `img2img(..., sampler=adapted(sample_dpmpp_2m))`.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from minisd.more_samplers.adapted_functions import adapted_function, is_function
from minisd.more_samplers.adapted_schedulers import adapted_scheduler, is_scheduler
from minisd.run import lookup
from minisd.samplers import SAMPLERS, Sampler


def find_sampler(name: str | Callable[..., Any]) -> Sampler:
    """The sampler of that name: minisd's, FILE.py:FUNCTION, or MODULE:NAME of a library.

    The file or the module is run. Raises ValueError for an unknown name, OSError for a missing
    file.
    """
    place, colon, _ = name.rpartition(":") if isinstance(name, str) else ("", "", "")
    if colon and not place.endswith(".py"):
        return adapted(from_module(str(name)))
    return adapted(lookup("sampler", name, SAMPLERS))


def from_module(name: str) -> Callable[..., Any]:
    """`package.module:NAME` of an installed library. Raises ValueError if it is not there."""
    place, _, attribute = name.rpartition(":")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        if missing == place.partition(".")[0]:
            remedy = f"pip install {missing.replace('_', '-')}, or write FILE.py:FUNCTION"
            raise ValueError(f"{missing} is not installed: {remedy}") from None
        raise ValueError(f"{place} cannot be imported: {error}") from None
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{place} cannot be imported: {text:.200}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{place} has no sampler named {attribute!r}")
    return function


def adapted(sampler: Callable[..., Any]) -> Sampler:
    """A sampler of another library as one of minisd's; one of minisd's stays as it is.

    Raises ValueError for a class or a function whose arguments fit none of the kinds.
    """
    if is_scheduler(sampler):
        return adapted_scheduler(sampler)
    if is_function(sampler):
        return adapted_function(sampler)
    names = list(inspect.signature(sampler).parameters)
    if inspect.isclass(sampler) or "extra_args" in names:
        kinds = "(predict_eps, x, sigmas), (model, x, sigmas, extra_args, callback, ...)"
        raise ValueError(
            f"{sampler.__name__}({', '.join(names[:4])}, ...) is not a sampler: the arguments are "
            f"{kinds}, or it is a scheduler class with set_timesteps and step"
        )
    return sampler
