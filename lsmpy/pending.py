"""Calls of scripts that are not made to their end yet: a file each, so that neither a restart nor a crash loses one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from lsmpy import state
from lsmpy.events import Call
from lsmpy.standing import as_json

DIRECTORY = "lsmpy/calls"  # in the state directory


class _Kept(Struct):
    boot: str
    call: Call


def prepare(directory: Path) -> None:
    """Make the directory and its parent, unless they are there or cannot be."""
    with contextlib.suppress(OSError):  # keep says it better
        directory.parent.mkdir(exist_ok=True)
        directory.mkdir(exist_ok=True)


def keep(directory: Path, call: Call) -> Path:
    """Remember a call until `forget`; returns by what, in an order in which later ones come later.

    Raises:
        StateError: it cannot be written.
    """
    prepare(directory)
    path = directory / f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME):020}"
    state.write(path, as_json(_Kept(state.boot(), call)))
    return path


def forget(path: Path) -> None:
    """The call has been made."""
    with contextlib.suppress(OSError):
        path.unlink()


def left(directory: Path, scripts: Collection[str]) -> Iterator[tuple[Path, Call]]:
    """What was begun or waited when this ended last, in its order.

    A call of another boot is over, as everything is told anew; one of no such script may be anybody's. Both are
    forgotten.
    """
    for path in _files(directory):
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeError):
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            if kept.boot == state.boot() and kept.call.argv[:1] and kept.call.argv[0] in scripts:
                yield path, kept.call
                continue
        forget(path)


def _files(directory: Path) -> Sequence[Path]:
    try:
        return sorted(each for each in directory.iterdir() if each.is_file())
    except OSError:
        return ()
