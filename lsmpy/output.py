"""What programs print: whoever reads it may have enough, its disk may be full, and it may not know all characters."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lsmpy import LsmpyError


class OutputError(LsmpyError):
    """What was printed cannot be written."""


@contextmanager
def whole() -> Iterator[None]:
    """For a program's whole run: at its end what it has printed is written, or that it could not be is told.

    Raises:
        OutputError: something could not be written.
        SystemExit: nobody reads it any more; with the status of a program that SIGPIPE ends, and no words.
    """
    if sys.stdout is None:  # closed by whoever started us, who wants to hear nothing
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield from _flushed()
    except BrokenPipeError:
        _discard()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _discard()
        why = f"cannot write to standard output: {error.strerror}. Some of what was to be printed is lost"
        raise OutputError(why) from error


def _flushed() -> Iterator[None]:
    try:
        yield
    except LsmpyError:  # a worse thing to tell
        try:
            sys.stdout.flush()
        except OSError:
            _discard()
        raise
    except SystemExit:  # after --help, say
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _discard() -> None:
    """What is still to be written goes nowhere, or Python itself would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
