"""The connections of an ISP that goes down are freed, and no others are (R4)."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import PORT, ROUTER, lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, configuration, rig, source, tunnel
from tests.lab.test_router_connections import ACK, DATAGRAMS, PSH, SEGMENTS

pytestmark = pytest.mark.lab

ISPS = ("ISP1", "ISP2")
FAULTS = ("upstream", "forced", "cable")


@contextmanager
def settled(place: Path, text: str, default: str | None = None) -> Iterator[Rig]:
    """A router that has been built for a while."""
    with rig(place, text, default) as router:
        router.rebuild()
        router.settle()
        router.rebuild()
        yield router


def fail(router: Rig, isp: str, fault: str) -> None:
    """Let an ISP fail, and everybody know who has to."""
    if fault == "cable":
        router.lab.pull_cable(isp)
    elif fault == "forced":
        (router.states / f"{isp}_force").write_text("down\n")
    else:
        router.lab.kill_upstream(isp)
        router.say(isp, "down")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("ipv6", "backend", "default"), [("snat", "nft", None), ("none", "legacy", "ISP2")])
def test_conversations_of_a_dead_isp_go_on_by_another_with_their_next_packet(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, fault: str
) -> None:
    with settled(tmp_path, configuration((1, 1), ipv6, backend), default) as router:
        with flows.LongFlows(router.lab, LAN, 8, ("udp",), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="long flows")
            began = long.isps()
            fail(router, "ISP2", fault)
            sent = [router.arrived("ISP2", "-p udp", family) for family in FAMILIES]
            log = router.rebuild()
            gone = [count() for count in sent]
            wait_until(lambda: set(long.isps().values()) == {"ISP1"}, what="all of them by ISP1")
            answered = router.arrived("ISP1", "-p udp")
            wait_until(lambda: answered() > 40, what="a second of them")
            events = long.stop()
        assert set(began.values()) == set(ISPS)
        assert "connections of ISP2 freed" in log
        if fault != "cable":
            assert [count() for count in sent] == gone
        moved = Counter(event.flow for event in events if event.event == "isp")
        assert moved == {flow: 2 if isp == "ISP2" else 1 for flow, isp in began.items()}
        assert router.foreign() == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("ipv6", "backend", "default"), [("snat", "nft", None), ("snat", "legacy", "ISP2")])
def test_a_dead_isps_tcp_connections_are_told_and_others_notice_nothing(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, fault: str
) -> None:
    with settled(tmp_path, configuration((1, 1), ipv6, backend), default) as router:
        with flows.LongFlows(router.lab, LAN, 8, ("tcp",), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="long flows")
            began = long.isps()
            theirs = [flow for flow, isp in began.items() if isp == "ISP2"]
            fail(router, "ISP2", fault)
            router.rebuild()
            arrived = [router.arrived("ISP2", "-p tcp", family) for family in FAMILIES]
            wait_until(
                lambda: sum(event.event == "broken" for event in list(long.events)) == len(theirs), what="resets"
            )
            alive = router.arrived("ISP1", "-p tcp")
            wait_until(lambda: alive() > 40, what="a second of the others")
            events = long.stop()
        broken = {event.flow: event.why for event in events if event.event == "broken"}
        assert broken == dict.fromkeys(theirs, "Connection reset by peer")
        assert [count() for count in arrived] == [0, 0]
        # Nor did the router take them for new ones by the other.
        known = [each for family in FAMILIES for each in router.connections(family).values() if each.startswith("tcp")]
        assert len(known) == len(began) - len(theirs)
        assert long.isps() == began
        for event in events:
            if event.event == "end" and event.flow not in theirs:
                assert event.longest_gap_ms <= 1000
        assert router.foreign() == 0


IDLE = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_STREAM if sys.argv[3] == "tcp" else socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.sendall(b"more\\n")
print(sock.recv(200).decode().split()[0], flush=True)
for _ in sys.stdin:
    try:
        sock.sendall(b"more\\n")
        print(sock.recv(200).decode().split()[0], flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


@contextmanager
def conversations(router: Rig, count: int = 12, family: Family = 4) -> Iterator[dict[str, set[str]]]:
    """Unanswered datagrams from ports of their own; the conntrack entries of each ISP."""
    argv = [str(router.lab.server[family]), str(PORT), "40000", str(count)]
    router.lab.run(lan_node(LAN), sys.executable, "-c", DATAGRAMS, *argv, stdin="\n")
    yield entries(router, family)


def entries(router: Rig, family: Family = 4) -> dict[str, set[str]]:
    """The numbers of each ISP's connections."""
    known = router.connections(family)
    return {
        isp.name: {
            number for number, each in known.items() if f"mark={router.lab.router.mark_value(isp)} " in f"{each} "
        }
        for isp in router.lab.router.isps
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("backend", "mask"), [("nft", "0xffffffff"), ("legacy", "0xff00")])
def test_no_others_are_freed_and_nothing_twice(tmp_path: Path, backend: str, mask: str, family: Family) -> None:
    text = configuration((1, 1, 1), backend=backend, router=f"mark_mask = {mask}")
    with settled(tmp_path, text) as router, conversations(router, 12, family) as began:
        assert [len(each) for each in began.values()] == [4, 4, 4]
        router.say("ISP2", "down")
        assert "freed" in router.rebuild("-v")
        assert entries(router, family) == began | {"ISP2": set()}
        # Somebody calls by ISP2, whose line is well; that is no business of later rebuilds.
        router.lab.shell("internet", "ip route add 2.2.2.1 via 2.2.2.2 2>/dev/null || true\n")
        for isp, text in (("ISP3", "down"), ("ISP3", "up"), ("ISP2", "up")):
            before = entries(router, family)
            router.say(isp, text)
            log = router.rebuild()
            gone = {isp: set[str]()} if text == "down" else {}
            assert entries(router, family) == before | gone
            assert ("freed" in log) == (text == "down")
            assert router.idle()
        assert "conntrack -D" not in router.rebuild("-v")


def test_with_none_up_nothing_is_freed_and_with_the_first_one_back_all_others_are(tmp_path: Path) -> None:
    with settled(tmp_path, configuration()) as router, conversations(router) as began:
        for isp in ISPS:
            router.say(isp, "down")
        assert "freed" not in router.rebuild()
        assert entries(router) == began
        router.say("ISP1", "up")
        assert "connections of ISP2 freed" in router.rebuild()
        assert entries(router) == {"ISP1": began["ISP1"], "ISP2": set()}


def test_a_first_rebuild_frees_nothing(tmp_path: Path) -> None:
    """Marks of before it are somebody else's."""
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        router.shell("iptables -t mangle -A PREROUTING -j CONNMARK --set-mark 2\n")
        with conversations(router) as began:
            assert len(began["ISP2"]) == 12
            router.say("ISP2", "down")
            assert "freed" not in router.rebuild("--replace")
            assert entries(router) == began


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_older_than_our_marks_is_freed_by_its_address(tmp_path: Path, family: Family) -> None:
    with rig(tmp_path, configuration(), "ISP2", server=False) as router:
        tool = "iptables" if family == 4 else "ip6tables"
        router.shell(f"{tool} -t nat -A POSTROUTING -o eth3 -j MASQUERADE\n")
        with conversations(router, 4, family):
            pass
        known = router.connections(family)
        assert sum(f"dst={source('ISP2', family)} " in each for each in known.values()) == 4
        router.rebuild("--replace")
        assert router.connections(family).keys() >= known.keys()
        router.say("ISP2", "down")
        router.rebuild()
        assert not router.connections(family).keys() & known.keys()


def test_a_rebuild_killed_before_it_frees_leaves_that_to_the_next(tmp_path: Path) -> None:
    with settled(tmp_path, configuration()) as router, conversations(router) as began:
        place = tmp_path / "bin"
        place.mkdir()
        (place / "conntrack").write_text(f"#!/bin/sh\nkill -9 $(cat {place}/pid)\n")
        (place / "conntrack").chmod(0o755)
        router.say("ISP2", "down")
        argv = ["sh", "-c", f'echo $$ >{place}/pid; PATH={place}:$PATH exec "$@"', "sh", *router.argv()]
        assert router.anyhow(*argv).status == -9
        assert "-A LSMPY-C-dev -g LSMPY-M-ISP1" in router.dump()
        assert entries(router) == began
        assert router.reconfig("--diff").status == 1
        assert "connections of ISP2 freed" in router.rebuild()
        assert entries(router) == {"ISP1": began["ISP1"], "ISP2": set()}
        assert router.idle()


def test_without_conntrack_the_rebuild_is_done_and_warns(tmp_path: Path) -> None:
    with settled(tmp_path, configuration()) as router, conversations(router) as began:
        router.say("ISP2", "down")
        hiding = 'mount --bind /dev/null "$(command -v conntrack)"; exec "$@"'
        result = router.anyhow("unshare", "--mount", "sh", "-e", "-c", hiding, "sh", *router.argv())
        assert result.status == 0
        assert "conntrack is not installed" in result.err
        assert "the connections of ISP2 could not be freed" in result.err
        assert "-A LSMPY-C-dev -g LSMPY-M-ISP1" in router.dump()
        assert entries(router) == began
        assert router.idle()


def test_whoever_does_not_want_it_is_left_alone(tmp_path: Path) -> None:
    with settled(tmp_path, configuration(router="flush_conntrack = false")) as router, conversations(router) as began:
        router.say("ISP2", "down")
        assert "conntrack" not in router.rebuild("-v").replace("-m conntrack", "")
        assert entries(router) == began


@pytest.mark.parametrize("infix", ["nft", "legacy"])
def test_the_script_frees_them_as_well(tmp_path: Path, infix: str) -> None:
    with settled(tmp_path, configuration(backend=infix)) as router, conversations(router) as began:
        router.say("ISP2", "down")
        script = router.reconfig("--dry-run").out
        router.shell(script)
        assert entries(router) == {"ISP1": began["ISP1"], "ISP2": set()}
        assert router.idle()
        with conversations(router):
            assert not entries(router)["ISP2"]


# -- in mid-stream -------------------------------------------------------------------------------------------


@contextmanager
def talkers(
    router: Rig, server: str, family: Family, port: int, node: str = lan_node(LAN), proto: flows.Proto = "tcp"
) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Two connections; what they have heard, and what makes each of them say something more."""
    said: list[str] = []
    with ExitStack() as stack:
        if server:
            ready: list[str] = []
            router.lab.start("internet", [sys.executable, "-c", server], ready.append)
            wait_until(lambda: ready, what="a server")
        doors = []
        for number in range(2):
            reading, writing = os.pipe()
            doors.append(stack.enter_context(os.fdopen(writing, "w")))
            # Its standard input is this pipe, wherever it runs.
            argv = ["sh", "-c", f'exec "$@" </proc/{os.getpid()}/fd/{reading}', "sh", sys.executable, "-c", IDLE]
            router.lab.start(node, [*argv, str(router.lab.server[family]), str(port), proto], said.append)
            wait_until(lambda: len(said) > number, what="a connection")  # noqa: B023
            os.close(reading)

        def speak() -> None:
            for door in doors:
                door.write("go on\n")
                door.flush()

        yield said, speak


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("backend", "tier", "proto"), [("nft", 1, "tcp"), ("legacy", 2, "tcp"), ("nft", 2, "udp")])
def test_what_the_router_itself_began_is_told_and_moves_as_well(
    tmp_path: Path, backend: str, tier: int, proto: flows.Proto, family: Family
) -> None:
    text = configuration(backend=backend, router='local_traffic = "balance"')
    text = text.replace('name = "ISP2"\n', f'name = "ISP2"\ntier = {tier}\n')
    with settled(tmp_path, text) as router, talkers(router, "", family, PORT, ROUTER, proto) as (said, speak):
        assert sorted(said) == ["ISP1\n", "ISP2\n" if tier == 1 else "ISP1\n"]
        router.say("ISP1", "down")
        router.rebuild()
        speak()
        wait_until(lambda: len(said) == 4, what="what became of them")
        told = {"tcp": ["Connection reset by peer\n"], "udp": ["ISP2\n"]}[proto]
        assert sorted(said[2:]) == (told * 2 if tier == 2 else [*told, "ISP2\n"])
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_idle_connection_learns_it_when_it_speaks(tmp_path: Path, family: Family) -> None:
    """And that is after the ISP is back."""
    with settled(tmp_path, configuration()) as router, talkers(router, "", family, PORT) as (said, speak):
        assert sorted(said) == ["ISP1\n", "ISP2\n"]
        for text in ("down", "up"):
            router.say("ISP2", text)
            router.rebuild()
        speak()
        wait_until(lambda: len(said) == 4, what="what became of them")
        assert sorted(said[2:]) == ["Connection reset by peer\n", "ISP1\n"]
        assert sum(each.startswith("tcp") for each in router.connections(family).values()) == 1
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("backend", "default"), [("nft", None), ("legacy", "ISP2")])
def test_what_is_in_mid_stream_is_refused_and_takes_no_turn(
    tmp_path: Path, backend: str, default: str | None, family: Family
) -> None:
    with settled(tmp_path, configuration(backend=backend), default) as router:
        tool = "iptables" if family == 4 else "ip6tables"
        router.lab.shell(lan_node(LAN), f"{tool} -A INPUT -p tcp --tcp-flags RST RST -m comment --comment told\n")
        me, to = str(router.lab.host(LAN, family)), str(router.lab.server[family])
        arrived = [router.arrived(isp, "-p tcp", family) for isp in ISPS]
        turns = []
        for start in range(41000, 41050, 10):
            turns += router.send(1, ("udp",), (family,))
            argv = [me, to, str(PORT), str(start), bytes([ACK, PSH | ACK, ACK]).hex()]  # an odd number
            router.lab.run(lan_node(LAN), sys.executable, "-c", SEGMENTS, *argv)
        assert [flow.isp for flow in turns] == [*ISPS, *ISPS, "ISP1"]

        def told() -> int:
            saved = router.lab.run(lan_node(LAN), f"{tool}-save", "-c")
            return int(next(line for line in saved.splitlines() if "told" in line)[1:].split(":")[0])

        wait_until(lambda: told() == 15, what="resets")
        assert [count() for count in arrived] == [0, 0]
        assert not any("tcp" in each for each in router.connections(family).values())
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_in_mid_stream_to_elsewhere_goes_on(tmp_path: Path, family: Family) -> None:
    """By a VPN's route of the main table, and to another LAN."""
    with settled(tmp_path, configuration()) as router:
        me = str(router.lab.host(LAN, family))
        there = {4: "198.51.100.7", 6: "2001:db8:77::7"}[family]
        other = str(router.lab.host("rnd", family))
        tool = "iptables" if family == 4 else "ip6tables"
        heard = f"{tool} -I INPUT -p tcp --sport 41000:41001 -m comment --comment heard\n"
        router.lab.shell(lan_node("rnd"), heard)
        with tunnel(router.lab, ROUTER, "tun0") as said:
            router.shell(f"ip route add {there} dev tun0\n")
            for to in (there, other):
                argv = [me, to, str(PORT), "41000", bytes([ACK, PSH | ACK]).hex()]
                router.lab.run(lan_node(LAN), sys.executable, "-c", SEGMENTS, *argv)

            def arrived() -> int:
                saved = router.lab.run(lan_node("rnd"), f"{tool}-save", "-c")
                return int(next(line for line in saved.splitlines() if "heard" in line)[1:].split(":")[0])

            wait_until(lambda: arrived() == 2, what="them in the other LAN")
            wait_until(
                lambda: sum(line.split()[::2] == [me, "6"] for line in list(said)) == 2, what="them in the tunnel"
            )


ECHO = """
import socket, sys, threading
def serve(peer):
    while text := peer.recv(100):
        peer.sendall(text)
with socket.create_server(("::", 8888), family=socket.AF_INET6) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
"""


def test_what_is_not_translated_goes_on_by_another_isp_with_tcp_too(tmp_path: Path) -> None:
    with settled(tmp_path, configuration(ipv6="none")) as router, talkers(router, ECHO, 6, 8888) as (said, speak):
        arrived = [router.arrived(isp, "-p tcp --dport 8888", 6) for isp in ISPS]
        speak()
        wait_until(lambda: said.count("more\n") == 4 and all(count() for count in arrived), what="one by each ISP")
        router.say("ISP2", "down")
        assert "freed" in router.rebuild()
        before = [count() for count in arrived]
        speak()
        wait_until(lambda: said.count("more\n") == 6, what="both to go on")
        wait_until(lambda: arrived[0]() >= before[0] + 4, what="the last acknowledgements")
        assert arrived[1]() == before[1]


def test_at_first_connections_are_taken_up_and_a_minute_later_no_more(tmp_path: Path) -> None:
    with rig(tmp_path, configuration()) as router:
        router.rebuild()
        for isp in ISPS:
            router.lab.kill_upstream(isp)  # or the server would reset what it does not know
        arrived = [router.arrived(isp, "-p tcp") for isp in ISPS]
        me, to = str(router.lab.host(LAN, 4)), str(router.lab.server[4])
        argv = [sys.executable, "-c", SEGMENTS, me, to, str(PORT)]
        router.lab.run(lan_node(LAN), *argv, "41000", bytes([ACK] * 4).hex())
        wait_until(lambda: [count() for count in arrived] == [2, 2], what="them, taken up")
        assert router.idle()
        router.settle(58)
        with router.watching() as watcher:
            assert not watcher.rebuilds
            wait_until(lambda: watcher.rebuilds, what="the end of the minute")
        # Those that were taken up are connections now.
        router.lab.run(lan_node(LAN), *argv, "41000", bytes([ACK] * 4).hex())
        wait_until(lambda: [count() for count in arrived] == [4, 4], what="them again")
        router.lab.run(lan_node(LAN), *argv, "42000", bytes([ACK] * 4).hex())
        router.lab.run(lan_node(LAN), sys.executable, "-c", DATAGRAMS, to, str(PORT), "43000", "1", stdin="\n")
        assert any("sport=43000" in each for each in router.connections().values())
        assert not any("sport=4200" in each for each in router.connections().values())
        assert router.idle()
        assert router.reconfig("--clear").status == 0
        router.rebuild()
        assert "LSMPY-STRAY" not in "".join(line for line in router.dump() if line.startswith("-A LSMPY-PREROUTING"))


# -- when it comes back --------------------------------------------------------------------------------------


def tiers(router: str = "") -> str:
    """Two ISPs and a spare one."""
    return configuration((1, 1, 1), router=router).replace('name = "ISP3"\n', 'name = "ISP3"\ntier = 2\n')


@pytest.mark.parametrize("failback", ["drain", "move"])
def test_connections_on_a_spare_isp_stay_there_or_are_freed_when_a_better_one_is_back(
    tmp_path: Path, failback: str
) -> None:
    with settled(tmp_path, tiers(f'failback = "{failback}"')) as router, conversations(router) as began:
        assert not began["ISP3"]
        for isp in ISPS:
            router.say(isp, "down")
        router.rebuild()
        with conversations(router) as during:
            assert {isp for isp, each in during.items() if each} == {"ISP3"}
        router.say("ISP2", "up")
        log = router.rebuild()
        assert entries(router)["ISP3"] == (set() if failback == "move" else during["ISP3"])
        assert ("connections of ISP3 freed" in log) == (failback == "move")
        with conversations(router) as after:
            assert bool(after["ISP2"]) == (failback == "move")
        # Among equals nothing moves back.
        router.say("ISP1", "up")
        assert "freed" not in router.rebuild()
        assert entries(router) == after
        # And what is still on the spare one is freed when that goes down, though nobody is given to it.
        router.say("ISP3", "down")
        assert "connections of ISP3 freed" in router.rebuild()
        assert entries(router) == after | {"ISP3": set()}
        router.say("ISP3", "up")
        assert "freed" not in router.rebuild()
        assert router.idle()


def test_with_none_up_nothing_moves(tmp_path: Path) -> None:
    with settled(tmp_path, tiers('failback = "move"')) as router:
        for isp in ISPS:
            router.say(isp, "down")
        router.rebuild()
        with conversations(router) as began:
            router.say("ISP3", "down")
            assert "freed" not in router.rebuild()
            assert entries(router) == began
            router.say("ISP2", "up")
            assert "ISP3 freed" in router.rebuild()
            assert not any(entries(router).values())


def test_who_is_back_is_used_when_it_has_been_so_for_long_enough(tmp_path: Path) -> None:
    text = configuration(router="failback_after_s = 3")
    with settled(tmp_path, text) as router, router.watching() as watcher:
        router.say("ISP2", "down")
        watcher.await_line("up ISP1, down ISP2")
        router.say("ISP2", "up")
        began = time.time()
        seen = watcher.await_line("ISP2: up again, and used when it was so for 3 s")
        assert {flow.isp for flow in router.send(4)} == {"ISP1"}
        watcher.await_line("up ISP1 ISP2", after=seen)
        assert 3 <= time.time() - began < 6
        assert {flow.isp for flow in router.send(4)} == set(ISPS)
        assert sum(line.startswith("ISP2: up again") for line in watcher.lines) == 1


def test_nobody_waits_who_is_alone_or_was_never_out_of_service_or_is_forced(tmp_path: Path) -> None:
    with settled(tmp_path, configuration(router="failback_after_s = 3600")) as router:
        for isp in ISPS:
            router.say(isp, "up")  # as a prober does that has just begun
        assert "down" not in router.rebuild()
        for isp in ISPS:
            router.say(isp, "down")
            router.rebuild()
        router.say("ISP2", "up")
        assert "up ISP2, down ISP1" in router.rebuild()
        router.say("ISP1", "up")
        assert "ISP1: up again" in router.rebuild()
        assert {flow.isp for flow in router.send(4)} == {"ISP2"}
        router.say("ISP2", "down")
        assert "up ISP1, down ISP2" in router.rebuild()
        router.say("ISP2", "up")
        router.rebuild()
        (router.states / "ISP2_force").write_text("up\n")
        assert "up ISP1 ISP2" in router.rebuild()
