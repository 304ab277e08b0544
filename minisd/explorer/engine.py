"""One thread that uses the model: one task at a time, with a short queue."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from typing import Any

from minisd.exact_mode.mode import same_arithmetic

MAX_WAITING = 4  # tasks, beside the one that runs

Message = dict[str, Any]


class Cancelled(Exception):
    """A task was cancelled while it ran."""


class QueueFull(Exception):
    """Too many tasks wait already."""


@dataclass(eq=False)
class Task:
    """Work for the model, and where its messages go. None is sent at the end."""

    work: Callable[["Task"], None]
    send: Callable[[Message | None], None]  # called from the engine's thread, too
    page: str = ""  # a newer task of the same page takes this one's place; "" has none
    cancelled: Event = field(default_factory=Event)

    def check(self, *_: object) -> None:
        """Raises Cancelled if the task was cancelled. It fits as a hook of a module."""
        if self.cancelled.is_set():
            raise Cancelled


class Engine:
    """The thread and its queue."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.waiting: deque[Task] = deque()
        self.running: Task | None = None
        self.stopped = False
        self.thread = Thread(target=same_arithmetic(self.serve), name="model", daemon=True)
        self.thread.start()

    def submit(self, task: Task) -> int:
        """Add a task, in place of all others of its page. Returns how many are before it.

        Raises QueueFull.
        """
        with self.changed:
            same_page = [t for t in (self.running, *self.waiting) if t and t.page == task.page]
            for older in same_page if task.page else []:
                self.cancel(older)
            if len(self.waiting) >= MAX_WAITING or self.stopped:
                raise QueueFull
            self.waiting.append(task)
            self.changed.notify()
            return len(self.waiting) - 1 + (self.running is not None)

    def cancel(self, task: Task) -> None:
        """A running task ends at its next layer; a waiting one never starts."""
        with self.changed:
            task.cancelled.set()
            if task in self.waiting:
                self.waiting.remove(task)
                task.send({"kind": "cancelled"})
                task.send(None)

    def stop(self) -> None:
        """Cancel everything, and wait for the thread's end."""
        with self.changed:
            self.stopped = True
            for task in (*self.waiting, *filter(None, [self.running])):
                self.cancel(task)
            self.changed.notify()
        self.thread.join(10)

    def serve(self) -> None:
        while True:
            with self.changed:
                self.running = None
                self.changed.wait_for(lambda: self.waiting or self.stopped)
                if self.stopped:
                    return
                self.running = task = self.waiting.popleft()
            try:
                task.work(task)
            except Cancelled:
                task.send({"kind": "cancelled"})
            except Exception as error:  # the thread must go on, whatever a run raises
                name = (
                    "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
                )
                task.send({"kind": "error", "text": f"{name}{error}"})
            finally:
                task.send(None)
