"""Workers on a Ray cluster: an actor for each GPU, or for a group of processor cores.

Needs the package ray (`pip install "minisd[ray]"`). Ray Core places the actors, starts those that
die again, and carries pictures to the driver, which alone writes. The checkpoint, init images and
FILE.py files must be readable under the same paths on all machines.
"""

import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minisd.sweeps.pool import WorkerDied
from minisd.sweeps.work import Outcome, Setup, Task, Worker

SECONDS_TO_CONNECT = 10
LOCAL = "local"  # the address of a Ray of this machine alone


def connect(address: str = LOCAL) -> Any:
    """The package ray, connected. A Ray that the caller has started is used as it is.

    address: LOCAL, "auto", HOST:PORT, or ray://HOST:PORT. Raises ValueError, OSError.
    """
    if find_spec("ray") is None:
        raise ValueError('the package ray is missing: pip install "minisd[ray]"')
    ray = import_module("ray")
    if ray.is_initialized():
        return ray
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if address != LOCAL:
        del quiet["include_dashboard"]
    try:
        if match := re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address):
            # Ray itself would wait for minutes if nothing answers there.
            socket.create_connection((match[1], int(match[2])), SECONDS_TO_CONNECT).close()
        ray.init(address, **quiet)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise OSError(f"there is no Ray cluster at {address}: {reason}") from None
    return ray


def ray_hands(setup: Setup, address: str, workers: int | None, threads: int) -> list["RayHand"]:
    """An actor for each GPU of the cluster; without GPUs, for every `threads` cores.

    workers: how many, if not all that the cluster has room for. Raises ValueError, OSError.
    """
    ray = connect(address)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    room = gpus or max(1, cpus // threads)
    needs = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads}
    remote = ray.remote(Actor).options(max_restarts=-1, max_task_retries=0, **needs)
    here = (os.getcwd(), sys.path)
    number = min(workers or room, room)
    return [RayHand(ray, remote.remote(setup, threads, *here)) for _ in range(number)]


class Actor:
    """What Ray runs in a process of its own: a worker, and the error of its start."""

    def __init__(self, setup: Setup, threads: int, folder: str, path: list[str]):
        sys.path += [entry for entry in path if entry not in sys.path]
        if Path(folder).is_dir():
            os.chdir(folder)  # so that relative names of pictures mean the same
        torch.set_num_threads(threads)
        self.error: Exception | None = None
        try:
            self.worker = Worker(setup)
        except Exception as error:
            is_own = isinstance(error, ValueError | OSError)
            self.error = error if is_own else ValueError(repr(error))

    def start(self) -> Exception | None:
        return self.error

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        return self.worker.draw(tasks)


@dataclass
class RayHand:
    """The driver's side of an actor."""

    ray: Any
    actor: Any
    is_started: bool = False
    starting: Any = None

    def is_ready(self) -> bool:
        if self.is_started:
            return True
        if self.starting is None:
            self.starting = self.actor.start.remote()
        try:
            error = self.ray.get(self.starting, timeout=1)
        except self.ray.exceptions.GetTimeoutError:
            return False  # Ray waits for a machine with room
        except self.ray.exceptions.ActorUnavailableError:  # Ray starts it again
            self.starting = None
            time.sleep(1)
            return False
        except self.ray.exceptions.RayError as failure:
            self.starting = None
            raise WorkerDied(first_line(failure)) from None
        self.starting = None
        if error is not None:
            raise error
        self.is_started = True
        return True

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        try:
            return self.ray.get(self.actor.draw.remote(tasks))
        except self.ray.exceptions.RayError as failure:
            self.is_started = False
            raise WorkerDied(first_line(failure)) from None

    def close(self) -> None:
        self.ray.kill(self.actor)


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
