"""Runs scripts for the prober, which tells them on standard input: in order, with a time limit, and logs failures."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from lsmpy import background, command
from lsmpy.command import CommandError
from lsmpy.events import Call
from lsmpy.said import Said

log = logging.getLogger(__name__)

TIMEOUT_S = 300.0  # a firewall that is built anew may take minutes on a small machine
_TOLD = ("LANG", "PATH", "TERM")  # of our environment: what LSM's scripts have
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Queue:
    """Calls that wait for those before them, and those under way, each in a thread."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._change = threading.Condition()
        self._waiting: list[Call] = []
        self._running: list[Call] = []

    def add(self, call: Call) -> None:
        """Make the call when no other with one of its keys is under way or before it."""
        with self._change:
            self._waiting.append(call)
            self._begin()

    def wait(self) -> None:
        """Return when all have been made."""
        with self._change:
            self._change.wait_for(lambda: not self._waiting and not self._running)

    def _begin(self) -> None:
        taken = {key for call in self._running for key in call.keys}
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if taken.isdisjoint(call.keys):
                self._running.append(call)
                threading.Thread(target=self._work, args=[call]).start()
            else:
                self._waiting.append(call)
            taken.update(call.keys)

    def _work(self, call: Call) -> None:
        try:
            run(call.argv, self._timeout_s)
        finally:
            with self._change:
                self._running.remove(call)
                self._begin()
                self._change.notify_all()


def run(argv: tuple[str, ...], timeout_s: float) -> None:
    """Run one script to its end; whatever goes wrong is logged."""
    script = Path(argv[0])
    try:
        executable = script.stat().st_mode & 0o100
    except OSError as error:
        log.error('failed to stat event script "%s" reason "%s"', script, error.strerror)
        return
    if not executable:
        log.error('event script "%s" is not executable by owner, please check permissions', script)
        return
    environment = {"PATH": _PATH, **{key: os.environ[key] for key in _TOLD if key in os.environ}}
    said = Said(log, script.name)
    try:
        command.start_foreign([str(script.absolute()), *argv[1:]], environment, said.hear, timeout_s).wait()
    except CommandError as error:
        if error.status is None:
            log.warning("event script: %s", error)
        else:
            late = f"; it has {timeout_s:g} s" if error.status == -signal.SIGKILL else ""
            log.warning("event script: %s ended with status %d%s", " ".join(argv), error.status, late)
    except ValueError as error:
        log.warning("event script: %s: %s", script, error)
    finally:
        said.end()


def main(argv: list[str] | None = None) -> int:
    """Read calls until there are no more, and make them all."""
    parser = argparse.ArgumentParser("lsmpy.caller", description=__doc__)
    parser.add_argument("--ident", help="log to syslog by this name")
    options = parser.parse_args(argv)
    background.log_to(options.ident)
    # Who stops the service may signal all its processes. What is under way is finished, as with LSM.
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, lambda *_: None)  # and not SIG_IGN, which scripts would inherit
    queue = Queue()
    for line in sys.stdin:
        keys, words = json.loads(line)
        queue.add(Call(tuple(keys), tuple(words)))
    queue.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
