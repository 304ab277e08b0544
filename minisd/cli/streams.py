"""Standard output and standard error that cannot fail: what is printed never decides what is saved.

A reader may be gone (`| head -1`), a disk full, a stream closed (`>&-`), an encoding too small for
the text (cp1252 on Windows, LANG=C). A picture that took minutes is saved all the same.
"""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from minisd.cli.messages import escape

# Line ends and tabs are printed, and the return to the line's start, which progress bars need.
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class Output:
    """A stream to print to. It escapes what the encoding lacks, and control characters."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream or io.StringIO()  # None: it was closed before the program started
        self.error: Exception | None = None  # the first one; from then on nothing is printed

    def write(self, text: str) -> int:
        text = CONTROLS.sub(lambda match: escape(match[0]), text)
        encoding = self.stream.encoding or "utf-8"
        self.attempt(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self.attempt("")

    def attempt(self, text: str) -> None:
        if self.error is not None:
            return
        try:
            self.stream.write(text) if text else self.stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.error = error
            # What Python still holds would fail again at the program's end.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    @property
    def failure(self) -> str | None:
        """Why text was lost; None if all was printed, or if nobody wanted to read it."""
        if isinstance(self.error, OSError) and self.error.errno not in (errno.EPIPE, errno.EBADF):
            return self.error.strerror or str(self.error)
        return None

    def __getattr__(self, name: str) -> Any:
        """All else, such as `isatty` and `fileno`, is the stream's own."""
        return getattr(self.stream, name)


@contextmanager
def safe_streams() -> Iterator[Output]:
    """Print through Output within the block; gives that of standard output."""
    open_missing_streams()
    output, errors = Output(sys.stdout), Output(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):  # type: ignore[type-var]
        try:
            yield output
        finally:
            output.flush()
            errors.flush()


def open_missing_streams() -> None:
    """Open the null device for each standard stream that is closed.

    Otherwise the next file that is opened, such as a picture, would take the stream's place.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free
