"""Where checkpoints are: a path, or a name in MINISD_MODELS or where other programs keep theirs."""

import os
from pathlib import Path

ENDINGS = ("", ".safetensors", ".ckpt")


def model_folders() -> list[Path]:
    """Folders that are searched, in order. MINISD_MODELS may name several, as PATH does."""
    home = Path.home()
    hub = os.environ.get("HF_HUB_CACHE")
    hub = (
        Path(hub) if hub else Path(os.environ.get("HF_HOME") or home / ".cache/huggingface") / "hub"
    )
    return [
        *(
            Path(folder)
            for folder in os.environ.get("MINISD_MODELS", "").split(os.pathsep)
            if folder
        ),
        Path("weights"),
        home / "stable-diffusion-webui/models/Stable-diffusion",  # AUTOMATIC1111
        home / "ComfyUI/models/checkpoints",
        home / "invokeai/models/ldm/stable-diffusion-v1",  # InvokeAI 2
        home / "stable-diffusion/models/ldm/stable-diffusion-v1",  # CompVis
        *sorted(hub.glob("models--*/snapshots/*")),  # Hugging Face
    ]


def find_model(name: str | None) -> Path | None:
    """The file that a --model names; None for minisd's own weights. Raises FileNotFoundError."""
    if name is None:
        return None
    if (path := Path(name).expanduser()).exists():
        return path
    folders = model_folders()
    if not path.is_absolute():
        for folder in folders:
            for ending in ENDINGS:
                if (found := folder / f"{name}{ending}").is_file():
                    return found
    searched = ", ".join(str(folder) for folder in folders if folder.is_dir())
    where = (
        f"; searched {searched}"
        if searched
        else "; put it in a folder and name that in MINISD_MODELS"
    )
    raise FileNotFoundError(
        f"no checkpoint is named {name}{where} (weights/README.md says where to get one)"
    )
