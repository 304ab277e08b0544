"""The trained models as one .safetensors file, in the layout of an SD 1.x checkpoint.

Its metadata hold what names and shapes do not tell, such as the number of heads.
"""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import minisd
from minisd.checkpoint.names import PREFIXES
from minisd.vae import VAE
from weights.fit_latent_rgb import fit
from weights.train.loop import replacing
from weights.train.profiles import Profile

LICENCE = (
    "MIT; trained on Fluent Emoji (MIT), Noto Emoji (Apache-2.0) and captions of emojibase-data "
    "(MIT): see the notice beside this file"
)


def export(
    path: Path,
    vae: VAE,
    models: nn.ModuleDict,
    profile: Profile,
    trained: dict,
    pictures: list[Image.Image],
) -> minisd.StableDiffusion:
    """Write the file in float16, load it, and return the loaded model.

    The factors of latent previews are fitted on `pictures`, with the loaded file.
    """
    parts = {"vae": vae, "unet": models["unet"], "text_encoder": models["text_encoder"]}
    facts = {
        "name": f"minisd emoji {profile.size}",
        "unet_heads": profile.heads,
        "text_heads": profile.heads,
        "native_size": profile.size,
        "licence": LICENCE,
        "train": {"profile": profile.name, **trained},  # for resume(); minisd does not read it
    }

    write(path, parts, facts)
    factors, _ = fit(minisd.load(path), pictures)
    rows = [[round(float(value), 4) for value in row] for row in factors]
    facts |= {"latent_rgb": rows[:4], "latent_rgb_bias": rows[4]}
    write(path, parts, facts)
    return minisd.load(path)


def write(path: Path, parts: dict[str, nn.Module], facts: dict) -> None:
    """The file of these models, in float16. facts: what minisd and `resume` read beside them."""
    tensors = {
        PREFIXES[part] + name: tensor.detach().to("cpu", torch.float16).contiguous()
        for part, model in parts.items()
        for name, tensor in model.state_dict().items()
    }
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata={"minisd": json.dumps(facts)})


def facts_of(path: Path) -> dict:
    """The facts in a file's metadata; {} if minisd did not write it."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("minisd", "{}"))


def training_facts(path: Path) -> dict:
    """profile, step and seconds of an exported file's training; {} for other files."""
    return facts_of(path).get("train", {})


def resume(path: Path) -> dict:
    """What is needed to continue the training of an exported file.

    That is the state dicts of its models in float32, step, and seconds.
    """
    facts = training_facts(path)
    if not {"step", "seconds"} <= set(facts):
        raise SystemExit(f"{path} was not exported by weights.train")
    sd = minisd.load(path)
    states = {part: getattr(sd, part).state_dict() for part in PREFIXES}
    return {**states, "step": facts["step"], "seconds": facts["seconds"]}
