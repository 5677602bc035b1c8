"""With every ISP down: all are used, none is chosen, or what is new is refused at once; and back when one returns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lsmpy.flows import LongFlows
from lsmpy.lab import lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, configuration, rig, source

pytestmark = pytest.mark.lab

# Who asks for it (ip(7), IP_RECVERR) is told at once. TCP would wait for its next attempt. UDP, which asks here if
# there is a second argument, tells others too of what is prohibited, but not of an unreachable network.
_ASK = """
import errno, socket, sys, time
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(family, kind) as sock:
        if kind == socket.SOCK_STREAM or sys.argv[2]:
            sock.setsockopt(*((41, 25, 1) if family == socket.AF_INET6 else (0, 11, 1)))
        sock.settimeout(3)
        began = time.monotonic()
        try:
            sock.connect((sys.argv[1], 7777))
            sock.send(b"once\\n")
            said = sock.recv(200).decode().strip()
        except OSError as error:
            said = errno.errorcode.get(error.errno, "nothing")
        print(said, round(time.monotonic() - began, 2))
"""
REFUSED = {4: {"EHOSTUNREACH"}, 6: {"EACCES"}}


def ask(router: Rig, families: Sequence[Family] = FAMILIES, every: str = "") -> dict[Family, set[str]]:
    """What a LAN's host hears by TCP and UDP, at once."""
    heard: dict[Family, set[str]] = {}
    for family in families:
        said = router.anyhow("python3", "-c", _ASK, str(router.lab.server[family]), every, node=lan_node(LAN)).out
        assert said.count("\n") == 2
        for line in said.splitlines():
            what, took_s = line.rsplit(" ", 1)
            assert float(took_s) < 1, said
            heard.setdefault(family, set()).add(what)
    return heard


def say_all(router: Rig, text: str) -> None:
    for isp in router.lab.router.isps:
        router.say(isp.name, text)
    router.rebuild()


def refusals(router: Rig) -> int:
    return sum(" prohibit" in line for f in FAMILIES for line in router.shell(f"ip -{f} rule\n").splitlines())


@pytest.mark.parametrize(("backend", "default"), [("nft", None), ("legacy", "ISP1")])
def test_new_connections_are_refused_at_once_if_so_wished(tmp_path: Path, backend: str, default: str | None) -> None:
    unreachable = configuration(backend=backend, router='when_all_down = "unreachable"')
    with rig(tmp_path, configuration(backend=backend), default) as router:
        say_all(router, "down")
        assert {flow.isp for flow in router.send(4, families=FAMILIES)} == {"ISP1", "ISP2"}  # unless it is wished
        router.configure(unreachable)
        say_all(router, "up")
        with LongFlows(router.lab, LAN, 8, ("tcp", "udp"), FAMILIES) as stay:
            wait_until(lambda: len(stay.isps()) == 8, what="long flows")
            say_all(router, "down")
            assert ask(router) == REFUSED
            assert refusals(router) == 4  # two LANs, two families
            assert router.idle()
            ends = [event for event in stay.stop() if event.event == "end"]
            assert not any(event.broken or event.longest_gap_ms > 1000 for event in ends), ends
        router.say("ISP2", "up")
        router.rebuild()
        assert {(flow.ok, flow.isp) for flow in router.send(4, families=FAMILIES)} == {(True, "ISP2")}
        assert (refusals(router), router.idle(), router.foreign()) == (0, True, 0)


def test_a_family_that_nobody_carries_any_more_is_refused_alone(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(router='when_all_down = "unreachable"')) as router:
        router.rebuild()
        router.shell("ip -6 address flush dev eth2\nip -6 address flush dev eth3\n")
        router.rebuild()
        assert refusals(router) == 2
        assert ask(router, [6]) == {6: REFUSED[6]}
        assert all(flow.ok for flow in router.send(4, ("udp", "tcp")))


@pytest.mark.parametrize(("backend", "default"), [("nft", None), ("legacy", "ISP1")])
def test_new_connections_go_by_main_if_so_wished(tmp_path: Path, backend: str, default: str | None) -> None:
    """As after the article's script; but by an ISP they leave with its address, which the article's NAT forgets."""
    with rig(tmp_path, configuration(backend=backend, router='when_all_down = "flush"'), default) as router:
        say_all(router, "down")
        if default:
            sent = router.send(4, ("udp", "tcp"), FAMILIES)
            assert {(flow.ok, flow.isp, flow.source) for flow in sent} == {
                (True, default, source(default, family)) for family in FAMILIES
            }
        else:
            # By the kernel, which knows no way.
            assert ask(router, every="too") == {family: {"ENETUNREACH"} for family in FAMILIES}
        assert (router.idle(), router.foreign()) == (True, 0)
        say_all(router, "up")
        assert {flow.isp for flow in router.send(4, families=FAMILIES)} == {"ISP1", "ISP2"}


@pytest.mark.parametrize("way", ["flush", "unreachable"])
def test_the_script_does_the_same(tmp_path: Path, way: str) -> None:
    made = []
    for number, how in enumerate(("rebuild", "script")):
        place = tmp_path / str(number)
        place.mkdir()
        options = f'when_all_down = "{way}"\nlocal_traffic = "balance"'
        with rig(place, configuration(router=options), server=False) as router:
            for isp in ("ISP1", "ISP2"):
                router.say(isp, "down")
            if how == "rebuild":
                router.rebuild()
            else:
                router.shell("ip rule add pref 20003 iif eth9 prohibit protocol 76\n")  # stale
                router.shell("ip route add default dev eth2 table 76 proto 76\n")
                router.shell(router.reconfig("--dry-run").out)
            made.append(router.dump())
            assert router.idle()
    assert made[0] == made[1]
