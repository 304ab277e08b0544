"""Several workers, each in a process of its own: on this machine here, on a cluster in cluster.py.

A thread in the driver waits for each worker, and gives it the next batch. If a worker dies, its
batch goes back to the others, and the worker starts again. A batch on which workers die twice is
taken apart; a row on which they die twice more is a failed row.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from minisd.sweeps.work import Outcome, Setup, Task, Worker, values_of

MOST_DEATHS = 2  # of workers, on one batch
MOST_STARTS = 3  # of a worker that dies before it draws anything


class WorkerDied(Exception):
    """The worker's process ended, or its machine is gone."""


class Hand(Protocol):
    """A worker elsewhere."""

    def is_ready(self) -> bool:
        """Whether it can draw; a worker that died is started again. Waits a second at most.

        Raises WorkerDied, or the ValueError or OSError of the worker's start.
        """
        ...

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Raises WorkerDied."""
        ...

    def close(self) -> None:
        """End the worker, also while it draws."""
        ...


def draw_in_pool(hands: Sequence[Hand], work: Iterator[list[Task]]) -> Iterator[list[Outcome]]:
    """The outcomes of all batches, as they are finished. Raises what stops a worker's start."""
    pool = Pool(work, len(hands))
    threads = [threading.Thread(target=pool.serve, args=[hand], daemon=True) for hand in hands]
    for thread in threads:
        thread.start()
    try:
        while (outcomes := pool.results.get()) is not None:
            if isinstance(outcomes, BaseException):
                raise outcomes
            yield outcomes
    finally:
        pool.stopped.set()
        for hand in hands:
            hand.close()


class Pool:
    """The batches that are left, and the results."""

    def __init__(self, work: Iterator[list[Task]], hands: int):
        self.work, self.hands = work, hands
        self.returned: deque[tuple[list[Task], int]] = deque()  # with the number of deaths on it
        self.lock = threading.Lock()
        self.active = 0  # batches that are being drawn
        # It is short, so that workers wait if the driver cannot write as fast as they draw.
        self.results: queue.Queue[Any] = queue.Queue(maxsize=64)
        self.stopped = threading.Event()

    def next_batch(self) -> tuple[list[Task], int] | None:
        with self.lock:
            batch = self.returned.popleft() if self.returned else None
            if batch is None and (tasks := next(self.work, None)) is not None:
                batch = tasks, 0
            self.active += batch is not None
            return batch

    def finish(self, outcomes: list[Outcome] | None) -> None:
        """A batch was drawn, or given back (None)."""
        if outcomes is not None:
            self.results.put(outcomes)
        with self.lock:
            self.active -= 1

    def is_finished(self) -> bool:
        return self.stopped.is_set() or (self.active == 0 and not self.returned)

    def serve(self, hand: Hand) -> None:
        """Let one worker draw until nothing is left. Runs in a thread."""
        try:
            starts = 0
            while not self.stopped.is_set():
                try:
                    if not hand.is_ready():
                        continue
                except WorkerDied as error:
                    starts += 1
                    if starts < MOST_STARTS:
                        continue
                    with self.lock:
                        self.hands -= 1
                    if self.hands == 0:
                        raise OSError(f"the workers end as soon as they start: {error}") from None
                    return  # the others go on
                batch = self.next_batch()
                if batch is None:
                    if self.is_finished():
                        self.results.put(None)
                        return
                    self.stopped.wait(0.05)  # another worker may die and give its batch back
                    continue
                starts = 0
                self.draw(hand, *batch)
        except Exception as error:
            self.results.put(error)

    def draw(self, hand: Hand, tasks: list[Task], deaths: int) -> None:
        try:
            self.finish(hand.draw(tasks))
        except WorkerDied as error:
            deaths += 1
            if deaths < MOST_DEATHS:
                self.returned.append((tasks, deaths))
            elif len(tasks) > 1:
                self.returned.extend(([task], 0) for task in tasks)
            else:
                text = f"the worker died {deaths} times while it drew this: {error}"
                row = {"key": tasks[0].key, **values_of(tasks[0].recipe), "error": text}
                self.finish([Outcome(row)])
                return
            self.finish(None)


# ---- processes of this machine -------------------------------------------------------------------

SERVE = "from minisd.sweeps.pool import serve; serve()"


def local_hands(setup: Setup, workers: int) -> list["LocalHand"]:
    """Each gets its share of the processor's cores, and a GPU of its own if there are several."""
    threads = max(1, cores() // workers)
    return [LocalHand(setup, i, threads) for i in range(workers)]


def cores() -> int:
    """The number that this process may use: a cluster's engine may allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LocalHand:
    """A worker in a process of this machine, which gets and answers pickles through pipes."""

    def __init__(self, setup: Setup, number: int, threads: int):
        self.setup = setup
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.environment = os.environ | dict.fromkeys(names, str(threads))
        if (gpus := torch.cuda.device_count()) > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            self.environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        self.threads = threads
        self.process: subprocess.Popen | None = None
        self.closed = False

    def is_ready(self) -> bool:
        if self.process is None and not self.closed:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self.environment,
                start_new_session=True,  # Ctrl-C stops the driver, which stops the workers
            )
            self.ask((self.setup, self.threads))
        return not self.closed

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        return self.ask(tasks)

    def ask(self, message: Any) -> Any:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            process.kill()
            status = process.wait()
            self.process = None
            reason = f"signal {-status}" if status < 0 else f"status {status}"
            raise WorkerDied(f"its process ended with {reason}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True
        if self.process is not None:
            self.process.kill()


def serve() -> None:
    """The program of a worker's process: standard input and output are the pipes."""
    to_driver = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a user's function prints must not get into the pipe
    from_driver = sys.stdin.buffer
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            message = pickle.load(from_driver)
        except EOFError:  # the driver has ended, whatever ended it
            return
        try:
            if work is None:
                setup, threads = message
                torch.set_num_threads(threads)
                answer: Any = None
                work = Worker(setup).draw
            else:
                answer = work(message)
        except Exception as error:
            answer = error if isinstance(error, ValueError | OSError) else ValueError(repr(error))
        try:
            pickle.dump(answer, to_driver)
            to_driver.flush()
        except BrokenPipeError:  # the driver has ended meanwhile
            os._exit(0)
