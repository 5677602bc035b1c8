"""Runs the programs of `[rules] after` once a rebuild has been made, and never lets the router wait for them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from lsmpy import command
from lsmpy.command import CommandError, Running
from lsmpy.said import Said

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
_END_S = 0.3  # a daemon ends within a second, and there is more to end


class News(Struct, frozen=True):
    """What programs are told of a rebuild: names of ISPs, in the order of the configuration.

    Attributes:
        up: those that are up.
        down: the others.
        changed: those that now get new connections and did not before, or the other way round.
        config: the configuration's path.
    """

    up: tuple[str, ...]
    down: tuple[str, ...]
    changed: tuple[str, ...]
    config: Path

    def environment(self) -> dict[str, str]:
        """The same in environment variables."""
        names = {"LSMPY_UP": self.up, "LSMPY_DOWN": self.down, "LSMPY_CHANGED": self.changed}
        return {key: " ".join(value) for key, value in names.items()} | {"LSMPY_CONFIG": str(self.config)}

    def following(self, older: News | None) -> News:
        """The same, with what has changed in a rebuild of which nobody was told."""
        changed = {*self.changed, *(older.changed if older else ())}
        return News(self.up, self.down, tuple(name for name in (*self.up, *self.down) if name in changed), self.config)


class Programs:
    """Runs programs in a thread of its own, one after another, so that neither they nor rebuilds overtake each other.

    What is told while they run is told to them afterwards, the newest state once and not every state.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._change = threading.Condition()
        self._next: tuple[Sequence[str], News] | None = None
        self._thread: threading.Thread | None = None
        self._running: Running | None = None
        self._closed = False

    def tell(self, programs: Sequence[str], news: News) -> None:
        """Have the programs run soon; returns at once."""
        with self._change:
            self._next = programs, news.following(self._next[1] if self._next else None)
            if self._thread is None and programs:
                # What a program has left behind may hold its output, and then what reads it does not end with us.
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether none runs."""
        return self._thread is None

    def wait(self) -> None:
        """Return when all have ended."""
        with self._change:
            self._change.wait_for(lambda: self._thread is None)

    def close(self) -> None:
        """End the one that runs, and begin no more; what it has left behind goes on unheard."""
        with self._change:
            self._closed = True
            if self._running:
                self._running.kill()
            self._change.wait_for(lambda: self._thread is None, _END_S)

    def _work(self) -> None:
        while True:
            with self._change:
                told, self._next = self._next, None
                if told is None or self._closed:
                    self._thread = None
                    self._change.notify_all()
                    return
            programs, news = told
            for program in programs:
                self._run(program, news.environment())

    def _run(self, program: str, environment: Mapping[str, str]) -> None:
        said = Said(log, Path(program).name)
        try:
            with self._change:
                if self._closed:
                    return
                told = {**command.ENVIRONMENT, **environment}
                running = command.start_foreign([program], told, said.hear, self._timeout_s)
                self._running = running
            running.wait()
        except CommandError as error:
            how = f"; it has {self._timeout_s:g} s" if error.status == -9 else ""
            log.warning("[rules] after: %s%s. The router is not concerned", error, how)
        finally:
            with self._change:
                self._running = None
            said.end()
