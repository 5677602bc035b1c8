"""Writes the state files for the prober, and leaves alone what an administrator has written there."""

from __future__ import annotations

import logging
from pathlib import Path

from lsmpy import state, verdict

log = logging.getLogger(__name__)


class Writer:
    """Keeps the state files of one directory."""

    def __init__(self, directory: Path, old: Writer | None = None) -> None:
        """Go on where `old` has left off."""
        self.directory = directory
        self._held: dict[str, str | None] = dict(old._held) if old else {}
        # Whose state file was empty when it was looked at last, for the first time.
        self._emptied: set[str] = set(old._emptied) if old else set()

    @property
    def waits(self) -> bool:
        """Whether somebody may be in the middle of writing a file."""
        return bool(self._emptied)

    def settle(self, name: str, status: str) -> None:
        """Bring the state file of `name` in line with what the probes say.

        Raises:
            StateError: a file cannot be written.
        """
        if not state.can_name(name):
            return
        file = state.glance(state.state_path(self.directory, name))
        if file == "" and name not in self._emptied:  # half-way of `echo up > FILE`, or not: the next turn tells
            self._emptied.add(name)
            return
        self._emptied.discard(name)
        held = settle(self.directory, name, None if status == "unknown" else status, file)
        if held is not None and held != self._held.get(name):
            log.info("%s: somebody wrote %r into its state file; it is left alone until removed or right", name, held)
        elif held is None and self._held.get(name) is not None:
            log.info("%s: its state file is written by the prober again", name)
        self._held[name] = held


def settle(directory: Path, name: str, said: str | None, file: str | None) -> str | None:
    """Bring the state file of the ISP `name`, which says `file`, in line with what the probes `said`; None for nothing.

    Returns what somebody else wrote, in which case nothing is changed; None if nobody did.

    Raises:
        StateError: a file cannot be written.
    """
    path, record = state.state_path(directory, name), state.record_path(directory, name)
    recorded = state.glance(record)
    written = state.written(recorded, file)
    if file is not None and recorded != written == file:
        state.write(record, file)  # whoever was here before was killed while it wrote
    action = verdict.decide(said, written, file)
    if action in ("adopt", "write"):
        state.make_own_directory(record)
    if action == "adopt" and file is not None:
        state.write(record, file)
        action = verdict.decide(said, file, file)
    if action == "write" and said is not None:
        state.write(record, said if file is None else f"{file}\n{said}")
        state.write(path, said)
        state.write(record, said)
    return file if action == "leave" else None
