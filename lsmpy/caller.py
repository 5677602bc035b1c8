"""Runs scripts for the prober, which tells them on standard input: in order, with a time limit, and logs failures."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from lsmpy import background, command, pending
from lsmpy.command import CommandError
from lsmpy.events import Call
from lsmpy.said import Said

log = logging.getLogger(__name__)

TIMEOUT_S = 300.0  # a firewall that is built anew may take minutes on a small machine
_TOLD = ("LANG", "PATH", "TERM")  # of our environment: what LSM's scripts have
_SIGNALS_S = 1.0  # who ends a service signals its processes one after another, the scripts perhaps first
_PIECE = 65536
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Queue:
    """Calls that wait for those before them, and those under way, each in a thread."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._change = threading.Condition()
        self._waiting: list[tuple[Path | None, Call]] = []
        self._running: list[Call] = []
        self._leaving = False

    def add(self, call: Call, kept: Path | None = None) -> None:
        """Make the call when none with a key of its own is under way or before it, and then forget what is `kept`."""
        with self._change:
            self._waiting.append((kept, call))
            self._begin()

    def leave(self) -> None:
        """Begin no more; what is not made to its end is kept for whoever comes after."""
        with self._change:
            self._leaving = True
            self._change.notify_all()

    def wait(self) -> None:
        """Return when all have been made, or left."""
        with self._change:
            self._change.wait_for(lambda: not self._running and (self._leaving or not self._waiting))

    def _begin(self) -> None:
        taken = {key for call in self._running for key in call.keys}
        waiting, self._waiting = self._waiting, []
        for kept, call in waiting:
            if taken.isdisjoint(call.keys) and not self._leaving:
                self._running.append(call)
                threading.Thread(target=self._work, args=[kept, call]).start()
            else:
                self._waiting.append((kept, call))
            taken.update(call.keys)

    def _work(self, kept: Path | None, call: Call) -> None:
        try:
            status = run(call.argv, self._timeout_s)
            if kept and not self._was_ended(status):
                pending.forget(kept)
        finally:
            with self._change:
                self._running.remove(call)
                self._begin()
                self._change.notify_all()

    def _was_ended(self, status: int) -> bool:
        """Whether a script ended with this status because the service is ended, in the middle of its work."""
        with self._change:
            patience_s = _SIGNALS_S if status == -signal.SIGTERM else 0
            return status != 0 and self._change.wait_for(lambda: self._leaving, patience_s)


class Output:
    """What a script prints, and what it leaves in the background: logged, and read to its end.

    Who prints and is not read any more gets SIGPIPE, which would end what a script has started, or the script itself
    when it has said enough.
    """

    def __init__(self, name: str) -> None:
        """Log it with the script's `name`."""
        self._said, self._enough = Said(log, name), False
        self._text = codecs.getincrementaldecoder("utf-8")("replace")
        self._reading, self.writing = os.pipe()

    def __enter__(self) -> Self:
        """Have a pipe to give to the script."""
        return self

    def __exit__(self, *_: object) -> None:
        """The script has ended; who else can print is heard in a thread of its own."""
        os.close(self.writing)
        threading.Thread(target=self._drain).start()

    def follow(self, pid: int) -> None:
        """Return when this process has ended, and what it had printed by then has been logged."""
        with contextlib.suppress(ProcessLookupError), _process(pid) as end:
            while end not in select.select([self._reading, end], [], [])[0]:
                self._hear(_PIECE)
        left = int.from_bytes(fcntl.ioctl(self._reading, termios.FIONREAD, bytes(4)), sys.byteorder)
        while left > 0:
            left -= self._hear(left)
        self._said.end()

    def _drain(self) -> None:
        while self._hear(_PIECE):
            pass
        self._said.end()
        os.close(self._reading)

    def _hear(self, most: int) -> int:
        piece = os.read(self._reading, most)
        if not self._enough:
            self._enough = self._said.hear(self._text.decode(piece))
        return len(piece)


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A file that can be read when the process has ended.

    Raises:
        ProcessLookupError: it has.
    """
    opened = os.pidfd_open(pid)
    try:
        yield opened
    finally:
        os.close(opened)


def run(argv: tuple[str, ...], timeout_s: float) -> int:
    """Run one script to its end; whatever goes wrong is logged.

    Returns its exit status, negative for a signal; 0 if it cannot be run at all.
    """
    script = Path(argv[0])
    try:
        executable = script.stat().st_mode & 0o100
    except (OSError, ValueError) as error:
        log.error('failed to stat event script "%s" reason "%s"', script, getattr(error, "strerror", error))
        return 0
    if not executable:
        log.error('event script "%s" is not executable by owner, please check permissions', script)
        return 0
    environment = {"PATH": _PATH, **{key: os.environ[key] for key in _TOLD if key in os.environ}}
    try:
        with Output(script.name) as output:
            words = [str(script.absolute()), *argv[1:]]
            running = command.start_foreign(words, environment, output.writing, timeout_s)
            output.follow(running.pid)
            running.wait()
    except CommandError as error:
        if error.status is None:
            log.warning("event script: %s", error)
            return 0
        late = f"; it has {timeout_s:g} s" if error.status == -signal.SIGKILL else ""
        log.warning("event script: %s ended with status %d%s", " ".join(argv), error.status, late)
        return error.status
    except ValueError as error:
        log.warning("event script: %s: %s", script, error)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Read calls until there are no more, and make them all."""
    parser = argparse.ArgumentParser("lsmpy.caller", description=__doc__)
    parser.add_argument("--ident", help="log to syslog by this name")
    parser.add_argument("place", type=Path, help="where calls are kept until they have been made")
    options = parser.parse_args(argv)
    background.log_to(options.ident)
    queue = Queue()
    nothing = os.open(os.devnull, os.O_RDONLY)

    def leave(*_: object) -> None:
        """What is under way is finished, as with LSM."""
        queue.leave()
        os.dup2(nothing, sys.stdin.fileno())  # which ends the loop below

    # Who stops the service may signal all its processes.
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, lambda *_: None)  # and not SIG_IGN, which scripts would inherit
    signal.signal(signal.SIGTERM, leave)
    with _turn(options.place):
        for line in sys.stdin:
            kept, keys, words = json.loads(line)
            if not kept or Path(kept).exists():  # or who was here before has made it
                queue.add(Call(tuple(keys), tuple(words)), Path(kept) if kept else None)
        queue.wait()
    return 0


@contextlib.contextmanager
def _turn(place: Path) -> Iterator[None]:
    """While nobody else makes the calls that are kept there: who was here before a restart may still be at it."""
    try:
        held = os.open(place, os.O_RDONLY)
    except OSError:  # where none can be kept
        yield
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


if __name__ == "__main__":
    sys.exit(main())
