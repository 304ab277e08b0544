"""The processes of bench/gpu_speed.py, timed in turn."""

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
BATCHES = (1, 8)  # of the part "speed"
# The layout of the weights, and the mode of torch.compile.
STAGES: dict[str, tuple[str, str | None]] = {
    "eager": ("contiguous", None),
    "channels last": ("channels last", None),
    "graph": ("channels last", "graph"),  # a CUDA graph of the eager call
    "reduce-overhead": ("channels last", "reduce-overhead"),
    "compile": ("channels last", "default"),
}
STEPS = 20


class Workers:
    """A process for each system and batch size.

    note   prints and keeps a result: note(name, **facts)
    left   seconds until the limit
    """

    def __init__(
        self,
        stages: Sequence[str],
        batches: Sequence[int],
        words: Sequence[str],
        log: Path,
        note: Callable[..., None],
        left: Callable[[], float],
    ):
        """words: the checkpoint and the device, as gpu_speed takes them."""
        self.stages, self.note = stages, note
        self.workers = [
            Worker(system, batch, words, log, note, left)
            for batch in batches
            for system in ("minisd", "diffusers")
        ]
        for worker in self.workers:
            for stage in stages:
                if stage != "compile":  # it takes a minute, and starts after the others
                    worker.ask("prepare", stage)

    def measure(self) -> None:
        pairs = list(zip(self.workers[::2], self.workers[1::2]))
        for stage in self.stages:
            for worker in self.workers:
                if stage == "compile":
                    worker.ask("prepare", stage)
            for pair in pairs:
                self.time_calls(stage, pair)
            if stage in ("eager", "reduce-overhead"):
                self.time_runs(stage, pairs[0])

    def time_calls(self, stage: str, pair: tuple["Worker", "Worker"]) -> None:
        """Guided calls of both systems, in turn."""
        answers = [worker.answer("prepare", stage) or {} for worker in pair]
        if not all("eps" in answer for answer in answers):
            return
        ours, theirs = (torch.tensor(answer["eps"]) for answer in answers)
        apart = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        times: list[list[float]] = [[], []]
        for _ in range(2):
            for i, worker in enumerate(pair):
                worker.ask("time", stage)
                times[i] += (worker.answer("time", stage) or {}).get("seconds", [])
        if all(times):
            seconds = [statistics.median(values) for values in times]
            facts = {"minisd": 1 / seconds[0], "diffusers": 1 / seconds[1]}
            facts |= {"ratio": seconds[1] / seconds[0], "apart": apart}
            spread = [[min(values), max(values)] for values in times]
            self.note(f"speed.{pair[0].batch}.{stage}, it/s", **facts, spread=spread)

    def time_runs(self, stage: str, pair: tuple["Worker", "Worker"]) -> None:
        """Whole runs of both systems."""
        pair[0].ask("kept", stage)
        pair[0].answer("kept", stage)
        seconds = []
        for worker in pair:
            worker.ask("run", stage)
            answer = worker.answer("run", stage) or {}
            seconds.append(statistics.median(answer.get("seconds", [0.0])))
        if all(seconds):
            rates = [STEPS / value for value in seconds]
            self.note(f"speed.run.{stage}", seconds=seconds, its=rates)

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()


class Worker:
    """A process of bench/gpu_speed.py. Its answers are noted as they come."""

    def __init__(
        self,
        system: str,
        batch: int,
        words: Sequence[str],
        log: Path,
        note: Callable[..., None],
        left: Callable[[], float],
    ):
        self.system, self.batch, self.note, self.left = system, batch, note, left
        self.answers: dict[tuple[str, str], queue.Queue] = {}
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu_speed", system, str(batch), *words],
                cwd=ROOT,
                env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "4"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        threading.Thread(target=self.read, daemon=True).start()

    def queue(self, word: str, stage: str) -> queue.Queue:
        return self.answers.setdefault((word, stage), queue.Queue())

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                answer = json.loads(line)
            except ValueError:
                continue
            word, stage = answer["word"], answer["stage"]
            facts = {k: v for k, v in answer.items() if k not in ("word", "stage", "eps")}
            self.note(f"{self.system}.{self.batch}.{word} {stage}", **facts)
            self.queue(word, stage).put(answer)

    def ask(self, word: str, stage: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # the process has ended; `answer` says so
            self.process.stdin.write(f"{word} {stage}\n")
            self.process.stdin.flush()

    def answer(self, word: str, stage: str) -> dict[str, Any] | None:
        """The answer, waited for until the limit; None if there is none."""
        while self.left() > 3:
            try:
                return self.queue(word, stage).get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None:
                    return None
        return None
