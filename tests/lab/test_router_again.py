"""Rebuilding again: twice, ten times at once, killed half-way, and after somebody has been at the kernel (R7)."""

from __future__ import annotations

import fcntl
import random
import time
from pathlib import Path

import pytest

from lsmpy import apply, flows
from lsmpy.lab import ROUTER, wait_until
from lsmpy.model import FAMILIES
from lsmpy.watch import TICK_S
from tests.lab.router_kit import Rig, configuration, rig

pytestmark = pytest.mark.lab

ISPS = {"ISP1", "ISP2"}
# Stands before a program in PATH and kills the rebuild before or after its call number $2 of such a program.
MINE = """#!/bin/sh
real=$(PATH=${{PATH#*:}} command -v {program})
number=$(flock {place} sh -c 'echo >>{place}/calls; wc -l <{place}/calls')
[ "$number" = "$(cat {place}/before)" ] && kill -9 $(cat {place}/pid)
"$real" "$@"
status=$?
[ "$number" = "$(cat {place}/after)" ] && kill -9 $(cat {place}/pid)
exit $status
"""
VANDALISM = {
    "mangle": "iptables -t mangle -F\n",
    "mangle, chains too": "iptables -t mangle -F\niptables -t mangle -X\n",
    "nat of IPv6": "ip6tables -t nat -F\n",
    "one rule": "iptables -t mangle -D LSMPY-PREROUTING 1\n",
    "another's rule among ours": "iptables -t mangle -I PREROUTING -j ACCEPT\n",
    "rules of routing": "ip rule flush\nip rule add pref 32766 lookup main\nip rule add pref 32767 lookup default\n",
    "rules by mark": "ip rule del pref 20002\nip -6 rule del pref 20002\n",
    "a rule too many": "ip rule add pref 100 fwmark 1 lookup 249\n",
    "a rule as ours": "ip rule del pref 20001 from 1.1.1.1\nip rule add pref 20001 from 1.1.1.1 lookup 250\n",
    "a table": "ip route flush table 249\nip -6 route flush table 249\n",
    "a default": "ip route replace default via 1.1.1.77 dev eth2 table 250\n",
    "the end of a table": "ip route del unreachable default table 249 metric 4294967295\n",
    "a route too many": "ip route add 10.9.9.0/24 via 1.1.1.77 table 250\n",
    "routes of other kinds": "".join(
        f"ip route add {kind} 10.9.8.{place}/32 table 250\n"
        for place, kind in enumerate(("blackhole", "prohibit", "throw", "unreachable"))
    )
    + "ip route add local 10.9.7.1 dev lo table 250\nip -6 route add blackhole fd77::/16 table 249\n",
    "settings": "echo 1 >/proc/sys/net/ipv4/conf/eth2/rp_filter\necho 0 >/proc/sys/net/ipv4/conf/eth3/src_valid_mark\n",
}


def serves(router: Rig, isps: set[str]) -> None:
    sent = router.send(8, ("tcp", "udp"), FAMILIES)
    assert {flow.isp for flow in sent} == isps, sent
    assert router.foreign() == 0


@pytest.mark.parametrize(
    ("weights", "ipv6", "backend", "default"),
    [((1, 1), "snat", "nft", None), ((3, 1), "none", "legacy", "ISP1"), ((5, 3, 2), "snat", "legacy", None)],
)
def test_the_second_time_changes_nothing(
    tmp_path: Path, weights: tuple[int, ...], ipv6: str, backend: str, default: str | None
) -> None:
    with rig(tmp_path, configuration(weights, ipv6, backend), default, server=False) as router:
        assert router.reconfig("--diff").status == 1
        for down in ("", "ISP2", "ISP1"):
            if down:
                router.say(down, "down")
            router.rebuild()
            once = router.dump()
            assert router.idle()
            assert router.dump() == once


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_ten_at_once_are_one_after_another(tmp_path: Path, backend: str) -> None:
    with rig(tmp_path, configuration(backend=backend), "ISP1") as router:
        router.rebuild()
        right = router.dump()
        assert router.reconfig("--clear").status == 0
        for each in [router.lab.start(ROUTER, router.argv()) for _ in range(10)]:
            each.wait()
        assert router.dump() == right
        serves(router, ISPS)


def test_the_one_that_had_to_wait_builds_the_newest_state(tmp_path: Path) -> None:
    """It looks at the world only when its turn has come; we are the rebuild that it waits for."""
    with rig(tmp_path, configuration(), server=False) as router:
        router.rebuild()
        before = router.dump()
        router.say("ISP1", "down")
        with apply.LOCK_PATH.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            said: list[str] = []
            running = router.lab.start(ROUTER, router.argv(), said.append)
            wait_until(lambda: said, what="it to wait for its turn")
            assert said == [f"waiting for another lsmpy-reconfig to end, which holds {lock.name}\n"]
            router.say("ISP1", "up")
            router.say("ISP2", "down")
            assert router.dump() == before
        running.wait()
        assert router.idle()
        assert "-A LSMPY-C-dev -g LSMPY-M-ISP1" in router.dump()


@pytest.mark.parametrize(("backend", "what"), [("nft", list(VANDALISM)), ("legacy", list(VANDALISM)[:5])])
def test_what_somebody_did_behind_our_back_is_made_right(tmp_path: Path, what: list[str], backend: str) -> None:
    with rig(tmp_path, configuration(backend=backend), "ISP1") as router:
        router.rebuild()
        right = router.dump()
        for name in what:
            router.shell(VANDALISM[name].replace("tables ", f"tables-{backend} "))
            assert router.dump() != right
            diff = router.reconfig("--diff")
            assert (diff.status, bool(diff.out)) == (1, True), name
            router.rebuild()
            assert router.dump() == right, name
        assert router.idle()
        serves(router, ISPS)


def test_the_watcher_makes_it_right_by_itself(tmp_path: Path) -> None:
    """Of routes and rules the kernel tells; what it does not tell of, a slow look finds."""
    untold = [name for name, script in VANDALISM.items() if not script.startswith("ip ")]
    with rig(tmp_path, configuration(), "ISP1") as router, router.watching():
        wait_until(router.idle, what="the router to be whole")
        right = router.dump()
        for name in VANDALISM.keys() - untold:
            router.shell(VANDALISM[name])
            wait_until(lambda: router.dump() == right, what=f"{name} to be made right", deadline_s=TICK_S / 2)
        router.shell("set +e\n" + "".join(VANDALISM[name] for name in untold))  # some leave others nothing to do
        wait_until(lambda: router.dump() == right, what="all else to be made right", deadline_s=2 * TICK_S)
        serves(router, ISPS)


@pytest.mark.parametrize(("backend", "default"), [("nft", None), ("legacy", "ISP1")])
def test_killed_anywhere_it_leaves_a_working_router(tmp_path: Path, backend: str, default: str | None) -> None:
    """Killed at moments that a seed chooses, while flows go on."""
    dice = random.Random(76)
    with rig(tmp_path, configuration(backend=backend, router="flush_conntrack = false"), default) as router:
        router.rebuild()
        began = time.monotonic()
        router.say("ISP2", "down")
        router.rebuild()
        usual_s = time.monotonic() - began
        killed = 0
        with flows.Stream(router.lab, "rnd", 100, ("udp",), FAMILIES, totals=True) as stream:
            for number in range(40):
                if number >= 8 and killed > 2:
                    break
                router.say("ISP2", "down" if number % 2 else "up")
                running, began = router.lab.start(ROUTER, router.argv()), time.monotonic()
                end = began + dice.uniform(0.4, 1.0) * usual_s
                wait_until(lambda: time.monotonic() > end or not running.alive, what="the moment")  # noqa: B023
                if running.alive:
                    killed += 1
                    running.process.kill()
                else:
                    usual_s = time.monotonic() - began  # the machine was busier before
                wait_until(lambda: not running.alive, what="its end")  # noqa: B023
                assert all(flow.ok for flow in router.send(8, ("udp",), FAMILIES))
                if number % 3 == 0:
                    router.rebuild()
                    assert router.reconfig("--diff").status == 0
            assert stream.stop().lost == 0
        assert killed > 2
        assert router.foreign() == 0
        router.say("ISP2", "up")
        router.rebuild()
        assert router.idle()
        serves(router, ISPS)


@pytest.mark.parametrize(("backend", "default", "moment"), [("nft", None, "before"), ("legacy", "ISP1", "after")])
def test_killed_at_each_step_of_the_first_rebuild_the_next_completes_it(
    tmp_path: Path, backend: str, default: str | None, moment: str
) -> None:
    """Each program that a rebuild runs kills it, before or after its work; the next rebuild ends it."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in (
        "ip",
        *(f"{tool}{end}" for tool in ("iptables", "ip6tables") for end in ("-restore", f"-{backend}-restore")),
    ):
        (place / name).write_text(MINE.format(program=name, place=place))
        (place / name).chmod(0o755)
    with rig(tmp_path, configuration(backend=backend), default) as router:
        router.rebuild()
        right = router.dump()
        assert router.reconfig("--clear").status == 0
        steps = 0
        while True:
            steps += 1
            assert steps < 20
            for file, text in (("before", ""), ("after", ""), (moment, str(steps)), ("calls", "")):
                (place / file).write_text(text)
            shell = f'echo $$ >{place}/pid; PATH={place}:$PATH exec "$@"'
            ended = router.anyhow("sh", "-c", shell, "sh", *router.argv())
            # What it had started ends by itself.
            wait_until(lambda: router.shell(f"pgrep -f ^/bin/sh.{place} || true\n") == "", what="its children to end")
            foreign = router.foreign()
            # Until NAT is there, all is as it was before the first rebuild.
            stands = router.dump()
            translated = any("SNAT --to-source 1.1.1.1" in line for line in stands)
            chosen = any(line.startswith("-A PREROUTING -j LSMPY-") for line in stands)
            answered = router.send(1, ("udp",))[0].ok
            assert answered == (chosen or bool(default and translated))
            assert router.foreign() - foreign == int(bool(default) and not translated)
            router.rebuild()
            assert router.dump() == right
            assert router.reconfig("--diff").status == 0
            if ended.status == 0:
                break
            assert router.reconfig("--clear").status == 0
        assert steps > 4
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == ISPS
