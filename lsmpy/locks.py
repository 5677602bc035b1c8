"""The files by whose locks several `lsmpy-reconfig` know of each other; the kernel frees those of whoever dies."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lsmpy import LsmpyError

log = logging.getLogger(__name__)

WATCH_PATH = Path("/run/lsmpy.watch")
_PAUSE_S = 0.02


class Stopped(Exception):  # noqa: N818  # nothing has failed
    """Whoever waited for a lock was told to end meanwhile."""


@contextmanager
def held(path: Path, shared: bool = False, stopped: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold the lock of a file, as soon as it is free.

    Args:
        path: the file, which is made if there is none.
        shared: whether others may hold it like this at the same time.
        stopped: whether to give up waiting. A signal handler does not end flock(2): Python goes on with it.

    Raises:
        Stopped: it was given up.
        LsmpyError: the file cannot be opened.
    """
    with _opened(path) as descriptor:
        if not _take(descriptor, shared):
            log.info("waiting for another lsmpy-reconfig to end, which holds %s", path)
            while not _take(descriptor, shared):
                if stopped():
                    raise Stopped
                time.sleep(_PAUSE_S)
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Keep every `--watch` from beginning.

    Raises:
        LsmpyError: one is running.
    """
    with _opened(WATCH_PATH) as descriptor:
        if not _take(descriptor, shared=False):
            raise LsmpyError(
                "lsmpy-reconfig --watch is running and would rebuild at once what is taken out. Nothing was changed. "
                "Stop it first: systemctl stop lsmpy-reconfig, or kill the process that "
                "pgrep -af 'lsmpy.reconfig.*--watch' shows"
            )
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LsmpyError(f"cannot open the lock {path}: {error.strerror}. Nothing was changed") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
