"""Where checkpoints are: a path, or a name in MINISD_MODELS or in other programs' folders."""

import os
import warnings
from itertools import islice
from pathlib import Path

from minisd.checkpoint.folder import main_file
from minisd.files import sha256
from minisd.recipes.metadata import Model

ENDINGS = ("", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")
MAX_FOLDERS = 1000  # folders below a model folder that are searched


def model_folders() -> list[Path]:
    """The folders that are searched, in order. MINISD_MODELS may name several, as PATH does."""
    home = Path.home()
    hub_home = Path(os.environ.get("HF_HOME") or home / ".cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or hub_home / "hub")
    own = os.environ.get("MINISD_MODELS", "").split(os.pathsep)
    return [
        *(Path(folder).expanduser() for folder in own if folder),
        Path("weights"),
        home / "stable-diffusion-webui/models/Stable-diffusion",  # AUTOMATIC1111
        home / "stable-diffusion-webui/models/VAE",
        home / "ComfyUI/models/checkpoints",
        home / "ComfyUI/models/vae",
        home / "invokeai/models/ldm/stable-diffusion-v1",  # InvokeAI 2
        home / "stable-diffusion/models/ldm/stable-diffusion-v1",  # CompVis
        *sorted(hub.glob("models--*/snapshots/*")),  # Hugging Face
    ]


def find_model(name: str | None) -> Path | None:
    """The file that --model names; None for minisd's own weights. Raises FileNotFoundError."""
    if name is None:
        return None
    if (path := Path(name).expanduser()).exists():
        return path
    folders = model_folders()
    if not path.is_absolute():
        for folder in folders:
            for ending in ENDINGS:
                if (file := folder / f"{name}{ending}").is_file():
                    return file
        files = {f"{name}{ending}" for ending in ENDINGS}
        for folder in folders:  # user interfaces sort models into folders of folders
            for parent, _, names in islice(os.walk(folder), MAX_FOLDERS):
                if matches := sorted(files.intersection(names)):
                    return Path(parent, matches[0])
    searched = ", ".join(str(folder) for folder in folders if folder.is_dir())
    hint = "put it in a folder and name that folder in MINISD_MODELS"
    hint = f"these folders, and those in them, were searched: {searched}" if searched else hint
    raise FileNotFoundError(
        f"there is no checkpoint named {name}; {hint} (weights/README.md says where to get one)"
    )


def find_vae(name: str | None, drawn_with: Model) -> Path | None:
    """The file of --vae; if that was not typed, the one of a picture's model, if it is here.

    None for the checkpoint's own autoencoder, which `--vae default` names too. Raises
    FileNotFoundError.
    """
    if name == "default":
        return None
    if name is not None or not drawn_with.vae:
        return find_model(name)
    remedy = f"give its file with --vae (SHA-256 {drawn_with.vae_sha256})"
    try:
        path = find_model(drawn_with.vae)
    except FileNotFoundError:
        absent = f"the picture was drawn with the autoencoder {drawn_with.vae}"
        warnings.warn(f"{absent}, which is not here: {remedy}", stacklevel=2)
        return None
    if path is not None and not sha256(main_file(path, "vae")).startswith(drawn_with.vae_sha256):
        other = f"{path} is not the autoencoder that the picture was drawn with"
        warnings.warn(f"{other}: {remedy}", stacklevel=2)
    return path
