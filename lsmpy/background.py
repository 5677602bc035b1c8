"""What LSM is besides a prober: a daemon in the background with a pid file, told by signals, which logs to syslog."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import syslog
from collections.abc import Iterator
from pathlib import Path

from lsmpy import LsmpyError

_PRIORITIES = {logging.ERROR: syslog.LOG_ERR, logging.WARNING: syslog.LOG_WARNING, logging.INFO: syslog.LOG_INFO}

# The last for nothing, as in LSM.
_CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class PidFileError(LsmpyError):
    """The pid file cannot be had."""


def log_to(ident: str | None) -> None:
    """Log to standard error and, with an `ident`, to syslog by that name as well (facility daemon, as LSM)."""
    handlers: list[logging.Handler] = [] if ident and _is_journal() else [logging.StreamHandler()]
    if ident:
        syslog.openlog(ident, syslog.LOG_PID, syslog.LOG_DAEMON)
        handlers.append(_Syslog())
    for handler in handlers:
        handler.setFormatter(_Printable())
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.getLogger("sh").setLevel(logging.WARNING)


def _is_journal() -> bool:
    """Whether standard error is systemd's journal, which syslog is too (systemd.exec(5), JOURNAL_STREAM)."""
    with contextlib.suppress(OSError):
        found = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


class _Printable(logging.Formatter):
    """The message alone, without what is no text, as an lsm.conf may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode(errors="backslashreplace").decode()


class _Syslog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            syslog.syslog(_PRIORITIES.get(record.levelno, syslog.LOG_DEBUG), line)


@contextlib.contextmanager
def signals() -> Iterator[socket.socket]:
    """The signals for a daemon as bytes on a socket, so that they wake select and interrupt nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = [signal.signal(each, lambda *_: None) for each in _CAUGHT]
        try:
            yield ours
        finally:
            for each, handler in zip(_CAUGHT, before, strict=True):
                signal.signal(each, handler)
            signal.set_wakeup_fd(-1)


@contextlib.contextmanager
def running(pid_file: Path | None, fork: bool) -> Iterator[None]:
    """For as long as the daemon runs: the only one that has this `pid_file`, with `fork` in the background.

    Raises:
        PidFileError: it cannot be opened, or another one has it.
    """
    held = _lock(pid_file) if pid_file else None
    waiting = _detach() if fork else None
    if held is not None:
        os.ftruncate(held, 0)
        os.pwrite(held, f"{os.getpid()}\n".encode(), 0)
    if waiting is not None:
        os.write(waiting, b"!")
        os.close(waiting)
    try:
        yield
    finally:
        if held is not None and pid_file:
            with contextlib.suppress(OSError):  # gone already: those who stop LSM often take it away themselves
                pid_file.unlink()
            os.close(held)


def _lock(path: Path) -> int:
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise PidFileError(f"cannot open the pid file {path}: {error.strerror}. Nothing was started") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        other = os.read(held, 20).decode(errors="replace").strip() or "?"
        os.close(held)
        raise PidFileError(f"{path} is locked by process {other}, which runs already. Nothing was started") from error
    return held


def _detach() -> int:
    """Go on in the background, in the same working directory (LSM).

    The process that was started ends with status 0 as soon as something is written to what is returned, so that whoever
    started it finds the pid file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        os._exit(0 if os.read(reading, 1) else 1)
    os.close(reading)
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for each in (0, 1, 2):
        os.dup2(nowhere, each)
    os.close(nowhere)
    return writing
