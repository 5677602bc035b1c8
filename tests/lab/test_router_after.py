"""`[rules] after`: programs that hear of a rebuild that changed something, and can do the router no harm."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lsmpy.lab import wait_until
from tests.lab.router_kit import Watcher, configuration, rig

pytestmark = pytest.mark.lab

TELL = 'echo "$LSMPY_UP; $LSMPY_DOWN; $LSMPY_CHANGED; $LSMPY_CONFIG"'


def hooks(place: Path, *texts: str) -> str:
    paths = []
    for number, text in enumerate(texts):
        path = place / f"hook{number}"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        paths.append(f'"{path}"')
    return f"[rules]\nafter = [{', '.join(paths)}]\n"


def heard(watcher: Watcher) -> list[str]:
    return [line.strip() for line in list(watcher.lines) if line.startswith("hook0: ")]


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_program_hears_of_each_rebuild_that_changed_something(tmp_path: Path, backend: str) -> None:
    text = configuration(backend=backend, more=hooks(tmp_path, TELL, "lsmpy-is-not-locked; ip rule show >&2; exit 3"))
    with rig(tmp_path, text, server=False) as router:
        config = router.config
        said = router.rebuild()
        assert f"hook0: ISP1 ISP2; ; ISP1 ISP2; {config}\n" in said
        assert "hook1: 20002:" in said  # both streams, and what it fails at stops nothing
        assert "hook1 ended with status 3" in said
        assert "hook" not in router.rebuild()
        router.say("ISP2", "down")
        with router.watching() as watcher:
            wait_until(lambda: heard(watcher), what="the first")
            router.say("ISP1", "down")  # then both are used
            wait_until(lambda: len(heard(watcher)) == 2, what="the second")
            router.say("ISP2", "up")
            wait_until(lambda: len(heard(watcher)) == 3, what="the third")
        assert heard(watcher) == [
            f"hook0: ISP1; ISP2; ISP2; {config}",
            f"hook0: ; ISP1 ISP2; ISP2; {config}",
            f"hook0: ISP2; ISP1; ISP1; {config}",
        ]
        with router.watching() as watcher:  # a new daemon's first, although there is nothing to do
            wait_until(lambda: heard(watcher), what="the first")
        assert heard(watcher) == [f"hook0: ISP2; ISP1; ; {config}"]


def test_one_that_hangs_delays_neither_a_rebuild_nor_the_end(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = configuration(more=hooks(tmp_path, f"{TELL}\necho >>{ran}\nsleep 60"))
    with rig(tmp_path, text, server=False) as router:
        with router.watching() as watcher:
            wait_until(lambda: watcher.rebuilds, what="the first rebuild")
            for number, text in enumerate(("down", "up"), 2):
                began = time.monotonic()
                router.say("ISP2", text)
                wait_until(lambda: len(watcher.rebuilds) == number, what="a rebuild")  # noqa: B023
                assert time.monotonic() - began < 2
            assert router.idle()  # no lock is held, and it has not gone on meanwhile
            assert ran.read_text() == "\n"
            watcher.await_line("hook0 ended with status -9", deadline_s=15)
            watcher.await_line("it has 10 s")
            wait_until(lambda: ran.read_text() == "\n\n", what="the next to begin")
            began = time.monotonic()
            os.kill(watcher.running.pid, signal.SIGTERM)
            wait_until(lambda: not watcher.running.alive, what="its end")
            assert time.monotonic() - began < 1
            watcher.running.wait()
        assert len(heard(watcher)) == 2  # the news of both rebuilds at once
        assert heard(watcher)[-1].startswith("hook0: ISP1 ISP2; ; ISP2;")


def test_a_program_may_rebuild_the_router_itself(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        again = " ".join(router.argv())
        router.configure(configuration(more=hooks(tmp_path, f"{TELL}\n{again}")))
        began = time.monotonic()
        assert "hook0: nothing to do" in router.rebuild()
        assert time.monotonic() - began < 5


def test_one_that_is_missing_is_told(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(more='[rules]\nafter = ["/nowhere/hook"]\n'), server=False) as router:
        said = router.rebuild()
        assert "rebuilt in" in said
        assert "[rules] after: /nowhere/hook could not be run" in said
        assert router.idle()
