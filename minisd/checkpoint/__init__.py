"""Checkpoint files: from a file to the models, without running anything that is in the file."""

from minisd.checkpoint.inspection import Inspection, inspect
from minisd.checkpoint.load import load
from minisd.checkpoint.names import POSITION_IDS, PREFIXES, SCHEDULE_BUFFERS
from minisd.checkpoint.tensors import CheckpointError

__all__ = [
    "POSITION_IDS",
    "PREFIXES",
    "SCHEDULE_BUFFERS",
    "CheckpointError",
    "Inspection",
    "inspect",
    "load",
]
