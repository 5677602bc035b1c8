"""State files: the only joint between the parts. Who may write them, and what they mean, is in state/README.md."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from lsmpy import LsmpyError

# Words that LSM passes to its event script; anything else that is not `up` is worth a warning.
LSM_WORDS = frozenset({"up", "down", "long_down", "unknown", "long_down_to_up", "long_down_to_down"})
FORCES = ("up", "down")
_REREAD_S = 0.05
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LONGEST = 4096


class StateError(LsmpyError):
    """A state file or its directory cannot be used."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the files say of one ISP.

    Attributes:
        up: whether new connections may use it.
        text: what NAME_state holds, stripped at its end; None without a file.
        force: what NAME_force holds, `up` or `down`; None without one.
        warning: what the administrator should be told of the files, or an empty string.
    """

    up: bool
    text: str | None = None
    force: str | None = None
    warning: str = ""


def can_name(text: str) -> bool:
    """Whether a state file can have this name in it: nothing of it leads elsewhere or hides it."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", text) is not None


def state_path(directory: Path, name: str) -> Path:
    """The file that says whether the ISP is up."""
    return directory / f"{name}_state"


def force_path(directory: Path, name: str) -> Path:
    """The file that overrides it, for the router part only."""
    return directory / f"{name}_force"


def record_path(directory: Path, name: str) -> Path:
    """What the prober wrote last, by which it knows an administrator's hand."""
    return directory / "lsmpy" / f"{name}_written"


def judge(text: str | None, force: str | None = None) -> Status:
    """The meaning of the two files' texts: no file is up, exactly `up` is up, anything else is not (the article)."""
    up, warning = text in (None, "up"), ""
    if text is not None and text not in LSM_WORDS:
        warning = f"its state file says {_shown(text)}, which is neither 'up' nor 'down'; it counts as down"
    if force in FORCES:
        return Status(force == "up", text, force, warning)
    if force is not None:
        warning = f"its force file says {_shown(force)}, which is neither 'up' nor 'down'; it is ignored"
    return Status(up, text, None, warning)


def read(directory: Path, name: str) -> Status:
    """What the files say of the ISP `name` now."""
    return judge(read_text(state_path(directory, name)), read_text(force_path(directory, name)))


def written(record: str | None, text: str | None) -> str | None:
    """What the prober wrote last, by its record, into the file that says `text` now; None if it never wrote it.

    While it writes, the record holds what was there before as well, so that a crash makes neither somebody else's.
    """
    return text if record is not None and text in (record, *record.split("\n")) else record


def age_s(directory: Path, name: str) -> float | None:
    """For how long NAME_state has not been written; None without one, or when the clock has been set back since."""
    try:
        age = time.time() - state_path(directory, name).stat().st_mtime
    except OSError:
        return None
    return age if age >= 0 else None


def read_text(path: Path) -> str | None:
    """The file's text without trailing white space, None without a file; never raises for what a file may hold.

    An empty file is what `echo up > FILE` looks like half-way, so it is read again before it is believed.
    """
    text = glance(path)
    if text == "":
        time.sleep(_REREAD_S)
        text = glance(path)
    return text


def glance(path: Path) -> str | None:
    """As `read_text`, for who looks again soon and cannot wait."""
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            # None: somebody holds the pipe open and has not written yet.
            return (file.read(_LONGEST) or b"").rstrip().decode(errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"unreadable: {error.strerror}"


def boot() -> str:
    """Which boot of the machine this is; empty if nobody knows. What belongs to another one is over."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return ""


def make_own_directory(path: Path) -> None:
    """Make the directory of one of the prober's own files in the state directory, unless it is there."""
    with contextlib.suppress(OSError):  # write says it better
        path.parent.mkdir(exist_ok=True)


def write(path: Path, text: str) -> None:
    """Write a state, force or record file whole: a reader sees the old text or the new one, never a part.

    Raises:
        StateError: the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            # Not through a link that somebody else, whose directory it may be, has put there.
            temporary.unlink(missing_ok=True)
            with open(temporary, "x", errors="surrogateescape", opener=_open_new) as file:
                file.write(text + "\n")
                os.fchmod(file.fileno(), 0o644)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise StateError(
            f"cannot write {path}: {error.strerror}. The file is unchanged; "
            f"check that {path.parent} exists and is yours to write"
        ) from error


def remove(path: Path) -> None:
    """Remove a file that may be gone already.

    Raises:
        StateError: it exists and cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateError(f"cannot remove {path}: {error.strerror}. The file is unchanged") from error


def require_directory(directory: Path) -> None:
    """Refuse to take a missing directory for 'every ISP is up'.

    Raises:
        StateError: `directory` is none.
    """
    if not directory.is_dir():
        raise StateError(
            f"the state directory {directory} does not exist. Nothing was changed. "
            "Create it, or name the right one with state_dir or --state-dir"
        )


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _open_nonblocking(path: str, flags: int) -> int:
    """A pipe that somebody left there must not stop the router."""
    return os.open(path, flags | os.O_NONBLOCK)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
