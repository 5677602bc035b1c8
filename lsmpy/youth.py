"""How long ago the router was built for the first time since it was started: until then it knew no connections."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lsmpy import LsmpyError

PATH = Path("/run/lsmpy.first")
GRACE_S = 60.0


def begin() -> None:
    """Note that this is the first rebuild.

    Raises:
        LsmpyError: it cannot be noted.
    """
    try:
        PATH.write_text(f"{_now()}\n")
    except OSError as error:
        raise LsmpyError(f"cannot write {PATH}: {error.strerror}. Nothing was changed") from error


def known() -> bool:
    """Whether the router was built since the machine was started."""
    return PATH.exists()


def left_s() -> float:
    """For how many seconds more established connections may be taken up; 0 if nobody knows of a first rebuild."""
    with contextlib.suppress(OSError, ValueError):
        age = _now() - float(PATH.read_text())
        return max(0.0, GRACE_S - age) if age >= 0 else 0.0
    return 0.0


def _now() -> float:
    """Seconds since the machine was started, whatever becomes of its clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
