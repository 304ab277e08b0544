"""Where the workers of a sweep get their model from, and what is known before it is loaded."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisd.checkpoint import load
from minisd.checkpoint.folder import main_file
from minisd.checkpoint.load import bundled_weights
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.fast.openvino import engine_of
from minisd.files import sha256
from minisd.recipes.metadata import Model
from minisd.run import lookup
from minisd.stable_diffusion import StableDiffusion
from minisd.sweeps.recipe_lists import sha256_of


@dataclass(frozen=True)
class Source:
    """Where each worker gets the model from."""

    path: str | None = None  # a checkpoint, FILE.py:FUNCTION, or None: minisd's own weights
    vae: str | None = None
    ema: bool = False
    prediction: str | None = None
    device: str | None = None  # None: cuda if there is one
    dtype: str = "float32"

    @property
    def is_function(self) -> bool:
        return ".py:" in (self.path or "")

    def facts(self) -> Model:
        """What is known of the model before it is loaded. Raises OSError."""
        if self.is_function:
            code = f"{sha256_of(str(self.path).rpartition(':')[0])} {self.path}"
            digest = hashlib.sha256(code.encode()).hexdigest()
            return Model(sha256=digest, dtype=self.dtype, version=version("minisd"))
        return Model(
            sha256=sha256(main_file(Path(self.path or bundled_weights()))),
            dtype=self.dtype,
            version=version("minisd"),
            vae=Path(self.vae).name if self.vae else "",
            vae_sha256=sha256(main_file(Path(self.vae), "vae")) if self.vae else "",
            ema=self.ema,
            prediction=self.prediction or "",
        )

    def load(self) -> StableDiffusion:
        """Raises ValueError, OSError."""
        if self.is_function:
            return lookup("model", str(self.path), {})()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, self.dtype)
        vae, ema, prediction = self.vae, self.ema, self.prediction
        return load(self.path, device=device, dtype=dtype, vae=vae, ema=ema, prediction=prediction)


def source_of(sd: StableDiffusion) -> tuple[Source | None, Model]:
    """Where workers can get a loaded model from, and its facts.

    None if its tensors are not those of its file: then only this process can draw with it, and a
    hash of the tensors takes the place of the file's.
    """
    if engine_of(sd):
        raise ValueError("a sweep computes with torch: load the model without use_openvino")
    first = next(iter(module_of(sd.unet).parameters()), torch.zeros(()))
    source = Source(
        str(getattr(sd, "path", "")),
        str(sd.vae_path) if getattr(sd, "vae_path", None) else None,
        getattr(sd, "ema", False),
        device=str(sd.device),
        dtype=str(first.dtype).removeprefix("torch."),
    )
    digest = tensor_hash(sd)
    if source.path and Path(source.path).exists():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for prediction in (None, "v") if isinstance(sd.unet, VPredictionUNet) else (None,):
                candidate = replace(source, prediction=prediction)
                if tensor_hash(replace(candidate, device="cpu").load()) == digest:
                    return candidate, candidate.facts()
    return None, Model(sha256=digest, dtype=source.dtype, version=version("minisd"))


def module_of(model: Any) -> nn.Module:
    return model if isinstance(model, nn.Module) else nn.Module()


def tensor_hash(sd: StableDiffusion) -> str:
    """SHA-256 of the three models' classes, and of their tensors' names, shapes and numbers."""
    digest = hashlib.sha256()
    for name in ("unet", "vae", "text_encoder"):
        model = getattr(sd, name, None)
        digest.update(f"{name} {type(model).__qualname__}".encode())
        for key, tensor in sorted(module_of(model).state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
