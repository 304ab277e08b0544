"""Where checkpoints are: a path, or a name in MINISD_MODELS or in other programs' folders."""

import os
from itertools import islice
from pathlib import Path

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
