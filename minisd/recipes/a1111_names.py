"""AUTOMATIC1111's names, as they stand in its text: samplers, schedule types, options."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

# Names of samplers, and minisd's. The second group takes 2 N steps of prompt editing.
FIRST_ORDER = {
    "Euler": "k_euler",
    "Euler a": "k_euler_a",
    "LMS": "k_lms",
    "DPM++ 2M": "k_dpmpp_2",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "uni_pc",
}
SECOND_ORDER = {
    "Heun": "k_heun",
    "DPM2": "k_dpm_2",
    "DPM2 a": "k_dpm_2_a",
    "DPM++ 2S a": "k_dpmpp_2_a",
    "DPM++ SDE": "dpmpp_sde",
}
SAMPLERS = FIRST_ORDER | SECOND_ORDER
HEUN = "DPM++ 2M SDE Heun"  # dpmpp_2m_sde with the solver heun
VP = ("ddim", "plms", "uni_pc")  # they have no schedule type
SCHEDULES = (
    *("Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal"),
    *("Align Your Steps", "Simple", "Normal", "DDIM", "Beta", "Uniform"),
)


OTHER_NAMES = {"model": "uniform", "ddim_uniform": "ddim"}


def automatic_schedule(sampler: str) -> str:
    """The schedule of the schedule type "Automatic"."""
    if sampler in ("k_dpmpp_2", "dpmpp_sde", "k_dpmpp_2_a", "k_dpm_2", "k_dpm_2_a"):
        return "karras"
    return "exponential" if sampler in ("dpmpp_2m_sde", "dpmpp_3m_sde") else "uniform"


def schedule_named(name: str, sampler: str) -> str | None:
    """minisd's name of a schedule type; None for uniform levels that follow from "Automatic"."""
    if sampler in VP:
        return None
    if name == "Automatic":
        own = automatic_schedule(sampler)
        return None if own == "uniform" else own
    return name.lower().replace(" ", "_")


class Key(NamedTuple):
    """A key of the line of settings that is an option of the dialect."""

    option: str
    read: Callable[[str], Any]


def number(low: float, high: float, kind: type = float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(text)
        return value

    return read


def choice(**values: Any) -> Callable[[str], Any]:
    return lambda text: values[text.replace(" ", "_")]


TRUTH = choice(**{"True": True, "False": False})
KEYS = {
    "ENSD": Key("ensd", number(-(2**31), 2**31, int)),
    "RNG": Key("noise_source", choice(GPU="GPU", CPU="CPU", NV="NV", cuda="NV")),
    "Eta": Key("eta", number(0, 100)),
    "Eta DDIM": Key("eta", number(0, 100)),
    "NGMS": Key("ngms", number(0, 100)),
    "NGMS all steps": Key("ngms_all", TRUTH),
    "Noise multiplier": Key("noise_multiplier", number(0, 10)),
    "Extra noise": Key("extra_noise", number(0, 10)),
    "Schedule rho": Key("rho", number(0, 100)),
    "Schedule min sigma": Key("sigma_min", number(0, 100)),
    "Schedule max sigma": Key("sigma_max", number(0, 100)),
    "Discard penultimate sigma": Key("discard_next_to_last", TRUTH),
    "SGM noise multiplier": Key("sgm_noise", TRUTH),
    "Emphasis": Key(
        "emphasis",
        choice(
            **{"Original": "Original", "No_norm": "No norm", "Ignore": "Ignore", "None": "None"}
        ),
    ),
    "Pad conds": Key("pad_conds", TRUTH),
    "Pad conds v0": Key("pad_conds_v0", TRUTH),
    "Downcast alphas_cumprod": Key("downcast", TRUTH),
    "Old prompt editing timelines": Key("old_editing", TRUTH),
}
