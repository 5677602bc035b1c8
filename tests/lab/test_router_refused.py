"""`lsmpy-reconfig --watch` when its configuration or the users' rules become such that nothing can be built of them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.lab.router_kit import Rig, Watcher, configuration, rig
from tests.lab.test_router_guard import WRONG
from tests.lab.test_router_watch import DOWN, UP, await_verdict

pytestmark = pytest.mark.lab

REFUSED = "[rules] as they are now are refused and those that were loaded last kept:"
DROP = "*filter\n-A FORWARD -p tcp -m tcp --dport {} -j DROP\nCOMMIT\n"


def rules_in(file: Path) -> str:
    return f'[rules]\nipv4 = ["{file}"]\n'


def fails_over(router: Rig, watcher: Watcher) -> None:
    router.say("ISP2", "down")
    await_verdict(watcher, DOWN)
    router.say("ISP2", "up")
    await_verdict(watcher, UP)


def hang_up(router: Rig, watcher: Watcher, text: str, said: str) -> None:
    router.configure(text)
    seen = len(watcher.lines)
    os.kill(watcher.running.pid, signal.SIGHUP)
    watcher.await_line(said, after=seen)


def test_a_new_configuration_that_cannot_be_built_is_refused_and_the_old_one_kept(tmp_path: Path) -> None:
    file = tmp_path / "rules.v4"
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        before = router.dump()
        refused = "the new configuration is refused and the old one kept"
        for text, _, where in WRONG.values():
            file.write_text(text)
            hang_up(router, watcher, configuration(more=rules_in(file)), refused)
            watcher.await_line(where)
            fails_over(router, watcher)
            watcher.lines.clear()
        hang_up(router, watcher, configuration(more=rules_in(tmp_path / "nowhere")), refused)
        fails_over(router, watcher)
        hang_up(router, watcher, configuration(backend="legacy"), refused)
        watcher.await_line("iptables is legacy here, but iptables-nft holds")
        fails_over(router, watcher)
        assert router.dump() == before
        file.write_text(DROP.format(23))
        hang_up(router, watcher, configuration(more=rules_in(file)), "configuration read again")
        assert "-A FORWARD -p tcp -m tcp --dport 23 -j DROP" in router.dump()
        fails_over(router, watcher)
        assert router.idle()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_that_become_bad_under_way_stop_no_failover(tmp_path: Path, backend: str) -> None:
    file = tmp_path / "rules.v4"
    file.write_text(DROP.format(23))
    text = configuration(backend=backend, more=rules_in(file))
    with rig(tmp_path, text, server=False) as router, router.watching() as watcher:
        before = router.dump()
        for bad, _, where in WRONG.values():
            file.write_text(bad)
            fails_over(router, watcher)
            watcher.await_line(REFUSED)
            watcher.await_line(where)
            assert router.dump() == before
            watcher.lines.clear()
        file.unlink()
        fails_over(router, watcher)
        fails_over(router, watcher)
        assert sum(REFUSED in line for line in watcher.lines) == 1
        assert router.dump() == before
        file.write_text(DROP.format(24))
        fails_over(router, watcher)
        watcher.await_line("[rules] as they are now are good again and loaded")
        assert "-A FORWARD -p tcp -m tcp --dport 24 -j DROP" in router.dump()
        assert router.idle()
