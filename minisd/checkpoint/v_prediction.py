"""Checkpoints that were trained to predict v instead of the noise eps.

With x_in = alpha x0 + s eps, where alpha = 1 / sqrt(sigma^2 + 1) and s = sigma alpha, such a
network answers v = alpha eps - s x0 (Salimans & Ho 2022, appendix D). Hence eps = alpha v + s x_in.
"""

import re
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from minisd.schedule import LOG_SIGMAS
from minisd.unet import UNet

MAX_YAML = 1 << 16  # bytes; the original configurations have 2 kB
PARAMETERIZATION = re.compile(rb"^\s*parameterization\s*:\s*[\"']?([\w-]+)", re.MULTILINE)
IN_WORDS = {"v": "v", "velocity": "v", "v_prediction": "v", "v-prediction": "v"}
IN_WORDS |= {"eps": "eps", "epsilon": "eps"}


class VPredictionUNet(UNet):
    """A UNet whose layers predict v. Its answer is eps, as every sampler here expects."""

    log_sigmas = LOG_SIGMAS  # (1000,) of the schedule that it was trained on

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        v = super().forward(x, t, context)
        log_sigmas = torch.tensor(self.log_sigmas, dtype=torch.float32, device=x.device)
        below = t.long().clamp(0, len(log_sigmas) - 2)
        log_sigma = torch.lerp(log_sigmas[below], log_sigmas[below + 1], (t - below).float())
        sigma = log_sigma.exp().to(x.dtype)[:, None, None, None]  # (B, 1, 1, 1)
        return (v + sigma * x) / (sigma**2 + 1).sqrt()


def stated_prediction(
    names: Collection[str], metadata: dict[str, str], path: Path
) -> tuple[str, str] | None:
    """("v" or "eps", where it is stated): by a mark, by metadata, or by a .yaml beside the file."""
    if "v_pred" in names:
        return "v", "the tensor v_pred"
    stated = IN_WORDS.get(metadata.get("modelspec.prediction_type", "").lower())
    if stated:
        return stated, "the metadata modelspec.prediction_type"
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v", "the metadata ss_v_parameterization"
    config = path.with_suffix(".yaml")
    if config.is_file() and config != path:
        with open(config, "rb") as file:  # one line is looked for, so nothing in it can run
            match = PARAMETERIZATION.search(file.read(MAX_YAML))
        stated = IN_WORDS.get(match[1].decode("ascii", "replace").lower()) if match else None
        if stated:
            return stated, config.name
    return None
