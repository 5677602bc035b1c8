"""What programs print: whoever reads it may have enough, its disk may be full, and it may not know all characters."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from lsmpy import LsmpyError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class OutputError(LsmpyError):
    """What was printed cannot be written."""


@contextmanager
def whole() -> Iterator[None]:
    """For a program's whole run: at its end what it has printed is written, or that it could not be is told.

    Raises:
        OutputError: something could not be written.
        SystemExit: nobody reads it any more; with the status of a program that SIGPIPE ends, and no words.
    """
    if sys.stdout is not sys.__stdout__:  # somebody takes it within this process
        yield
        return
    with _open() as text, redirect_stdout(text):
        try:
            yield
        except BaseException as error:
            if not isinstance(error, SystemExit):  # which --help raises
                text.output.told = True  # there is a worse thing to tell
            text.finish()
            raise
        text.finish()


class _Output(io.FileIO):
    """A file that tells once, and the main thread, that it cannot be written; then it takes all that comes."""

    failure: OSError | None = None
    told = False

    def write(self, data: ReadableBuffer, /) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        if threading.current_thread() is threading.main_thread():
            self.complain()
        return memoryview(data).nbytes

    def complain(self) -> None:
        if self.failure is None or self.told:
            return
        self.told = True
        if isinstance(self.failure, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE)
        why = self.failure.strerror
        raise OutputError(f"cannot write to standard output: {why}. Some of what was to be printed is lost")


class _Text(io.TextIOWrapper):
    def __init__(self, output: _Output, encoding: str) -> None:
        super().__init__(io.BufferedWriter(output), encoding, "replace", line_buffering=output.isatty())
        self.output = output

    def finish(self) -> None:
        self.flush()
        self.output.complain()


def _open() -> _Text:
    if sys.stdout is None:  # closed by whoever started us, who wants to hear nothing
        return _Text(_Output(os.devnull, "w"), "utf-8")
    return _Text(_Output(sys.stdout.fileno(), "w", closefd=False), sys.stdout.encoding)
