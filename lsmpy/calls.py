"""Hands calls of scripts to a process of its own (`caller`), so that no script can delay a probe."""

from __future__ import annotations

import json
import logging
import os
import selectors
import sys
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from lsmpy import LsmpyError, pending
from lsmpy.events import Call
from lsmpy.state import StateError

log = logging.getLogger(__name__)


class CallerError(LsmpyError):
    """The process that runs the scripts cannot be had, or has died."""


class Caller:
    """The other process.

    Attributes:
        pid: its number.
        waiting: what it has not been told yet, because it reads too slowly.
    """

    def __init__(self, selector: selectors.BaseSelector, place: Path, words: Sequence[str] = ()) -> None:
        """Start it; `words` are its arguments, and calls are kept in the directory `place` until they have been made.

        Raises:
            CallerError: it cannot be started.
        """
        self._selector, self._place, self._keeps = selector, place, True
        pending.prepare(place)
        self.waiting: deque[bytes] = deque()
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "lsmpy.caller",
            str(place),
            *words,
        ]  # -P: nothing of the working directory's
        try:
            actions = [(os.POSIX_SPAWN_DUP2, reading, 0)]
            # A group of its own: Ctrl-C is for the prober, and not for a script in the middle of its work.
            self.pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setpgroup=0)
            self._end = os.pidfd_open(self.pid)
        except OSError as error:
            raise CallerError(f"cannot start the process that runs scripts: {error.strerror}. None was run") from error
        finally:
            os.close(reading)
        selector.register(self._end, selectors.EVENT_READ, self._ended)

    def resume(self, scripts: Collection[str]) -> None:
        """Have those calls of these scripts made to which whoever was here before did not get."""
        self._add((str(path), call) for path, call in pending.left(self._place, scripts))

    def call(self, calls: Sequence[Call]) -> None:
        """Have these made, each after those before it that have a key in common with it; never waits."""
        self._add((self._keep(each), each) for each in calls)

    def _add(self, calls: Iterable[tuple[str, Call]]) -> None:
        self.waiting += (json.dumps([kept, each.keys, each.argv]).encode() + b"\n" for kept, each in calls)
        self._pass_on()

    def _keep(self, call: Call) -> str:
        """Keep a call; if that cannot be, it is made all the same."""
        try:
            kept = str(pending.keep(self._place, call))
        except StateError as error:
            if self._keeps:
                log.error("a restart in the middle of a script would not make its call again: %s", error)
            kept = ""
        self._keeps = bool(kept)
        return kept

    def close(self) -> None:
        """Tell it that there is no more; it ends by itself when it is done."""
        if self._pipe in self._selector.get_map():
            self._selector.unregister(self._pipe)
        self._selector.unregister(self._end)
        os.close(self._pipe)
        os.close(self._end)

    def _writable(self, _: int) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        watched = self._pipe in self._selector.get_map()
        while self.waiting:
            try:
                written = os.write(self._pipe, self.waiting[0])
            except BlockingIOError:
                if not watched:
                    self._selector.register(self._pipe, selectors.EVENT_WRITE, self._writable)
                return
            except BrokenPipeError:
                self._ended(0)
            rest = self.waiting.popleft()[written:]
            if rest:
                self.waiting.appendleft(rest)
        if watched:
            self._selector.unregister(self._pipe)

    def _ended(self, _: int) -> NoReturn:
        raise CallerError(
            f"the process that runs scripts (pid {self.pid}) has died. State files stay as they are; scripts of "
            f"changes from now on are not run until lsmpy-probe is started again"
        )
