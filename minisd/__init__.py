"""minisd: Stable Diffusion 1.x, small enough to read and exact enough to trust."""

import sys
from importlib import import_module
from types import ModuleType

HOME = {
    "load": "checkpoint",
    "StableDiffusion": "checkpoint",
    "CheckpointError": "checkpoint",
    "img2img": "img2img",
    "txt2img": "txt2img",
    "inpaint": "inpaint",
    "SAMPLERS": "samplers",
    "Step": "samplers",
    "SCHEDULES": "schedule",
    "start_index": "schedule",
}
__all__ = list(HOME)


class Package(ModuleType):
    """A module whose public names are imported when first asked for: torch takes a second."""

    def __getattr__(self, name: str) -> object:
        if name not in HOME:
            raise AttributeError(f"module 'minisd' has no attribute {name!r}")
        value = getattr(import_module(f"minisd.{HOME[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Importing the file img2img.py would bind `minisd.img2img` to it, over the function.
        if not (name in HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = Package
