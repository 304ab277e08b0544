"""Traces as files: one .safetensors, with the settings as JSON in its metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minisd.files import new_file
from minisd.observe.trace import Trace, TracedStep

FORMAT = "1"
KEY = "minisd_trace"  # in the file's metadata
OF_STEPS = ("x", "eps", "eps_uncond", "eps_cond")  # (n, B, 4, h, w), all kept steps stacked
OF_RUN = ("encoded", "noise", "noised", "latent", "image")


def save_trace(trace: Trace, path: str | Path) -> Path:
    """Write a trace. A trace of that name is replaced.

    Raises FileExistsError if the name is taken by another file, OSError if the trace cannot be
    written. Then no file is left.
    """
    tensors = {"i": torch.tensor([step.i for step in trace.steps], dtype=torch.int64)}
    for name in ("sigma", "sigma_next"):
        tensors[name] = torch.tensor(getattr(trace, name), dtype=torch.float64)
    for name in OF_STEPS:
        parts = getattr(trace, name)
        if parts and all(part is not None for part in parts):
            tensors[name] = torch.stack(parts)
    if trace.steps and all(step.calls for step in trace.steps):
        tensors["calls"] = torch.tensor([step.calls for step in trace.steps], dtype=torch.int64)
    for name in OF_RUN:
        if (tensor := getattr(trace, name)) is not None:
            tensors[name] = tensor
    about = {
        "format": FORMAT,
        "settings": trace.settings,
        "n_steps": trace.n_steps,
        "stride": trace.stride,
        "noised_sigma": trace.noised_sigma,
    }
    path = Path(path)
    on_cpu = {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
    with new_file(path, is_trace) as temporary:
        try:
            save_file(on_cpu, temporary, {KEY: json.dumps(about)})
        except SafetensorError as error:
            raise OSError(str(error)) from None
    return path


def is_trace(path: Path) -> bool:
    """Whether save_trace wrote the file. False for another program's latents."""
    try:
        with safe_open(path, "pt") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_trace(path: str | Path) -> Trace:
    """Read a trace, or another program's latents: `x` (n, 4, h, w) or (n, B, 4, h, w) and `sigma`
    (n,) are enough.

    Raises ValueError for a file that is not a trace, OSError for one that cannot be opened.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a trace: {error}") from None
    if "sigma" not in tensors or (len(tensors["sigma"]) and "x" not in tensors):
        raise ValueError(f"{path} is not a trace: it needs the tensors x and sigma")
    sigmas = tensors["sigma"].double().tolist()
    n = len(sigmas)
    values: dict[str, list[Any]] = {
        "i": list(range(n)),
        "sigma": sigmas,
        "sigma_next": [*sigmas[1:], 0.0],
    }
    for name in ("i", "sigma_next", "calls"):
        if name in tensors:
            values[name] = tensors[name].tolist()
    for name in OF_STEPS:
        if name in tensors:
            tensor = tensors[name]
            values[name] = list(tensor if tensor.ndim == 5 else tensor[:, None])
    if wrong := [name for name, entries in values.items() if len(entries) != n]:
        names = ", ".join(wrong)
        raise ValueError(f"{path} is not a trace: {names} must have {n} entries, as sigma has")
    trace = Trace(settings=about.get("settings", {}))
    for entries in zip(*values.values(), strict=True):
        trace.steps.append(TracedStep(**dict(zip(values, entries, strict=True))))
    trace.stride = about.get("stride", 1)
    trace.n_steps = about.get("n_steps", n)
    trace.noised_sigma = about.get("noised_sigma")
    for name in OF_RUN:
        setattr(trace, name, tensors.get(name))
    return trace
