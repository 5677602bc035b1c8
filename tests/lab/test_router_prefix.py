"""IPv6 without translation: whose prefix a source is in, by that ISP it goes and by no other (R9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lsmpy.flows import LongFlows, Proto
from lsmpy.lab import INTERNET, PORT, ROUTER, isp_node, lan_node, wait_until
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig

pytestmark = pytest.mark.lab

PROTOS: tuple[Proto, ...] = ("tcp", "udp")
# LAN 1 has addresses of both ISPs' prefixes, as from two providers' router advertisements, and of no ISP's.
LANS = ("2001:db8:a:{}::1/64", "2001:db8:101:{}::1/64", "2001:db8:102:{}::1/64")
NOBODYS, OF1, OF2 = "2001:db8:a:1::2", "2001:db8:101:1::2", "2001:db8:102:1::2"
OWNER = {OF1: "ISP1", OF2: "ISP2"}
REFUSED = "[Errno 13] Permission denied"  # what Linux makes of codes 1 and 5 (icmpv6_err_convert in net/ipv6/icmp.c)


def prefixes(backend: str = "auto", options: str = "", lans: Sequence[str] = LANS) -> str:
    return configuration(ipv6="none", backend=backend, router=options, prefix="2001:db8:10{}::/48", lans=lans)


def ask(router: Rig, *sources: str, node: str = lan_node(LAN), protos: Sequence[Proto] = PROTOS) -> list[str]:
    """By which ISP, and from which address, the server was asked from each of these; or what was heard instead."""
    to = str(router.lab.server[6])
    return router.talk(node, [Talk(to, proto, each) for each in sources for proto in protos])


def told(router: Rig) -> Callable[[], int]:
    """Count how many times a LAN's host is told that its source address is against the rules."""
    return router.seen(lan_node(LAN), "-p icmpv6 --icmpv6-type 1/5", 6)


@pytest.mark.parametrize(
    ("backend", "default", "options"),
    [("nft", None, ""), ("legacy", "ISP2", 'balance = "hash"'), ("nft", "ISP1", "tiers")],
)
def test_a_source_goes_by_the_isp_whose_it_is_and_by_no_other(
    tmp_path: Path, backend: str, default: str | None, options: str
) -> None:
    text = prefixes(backend, "" if options == "tiers" else options)
    if options == "tiers":
        text = text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')
    with rig(tmp_path, text, default) as router:
        router.rebuild()
        heard = told(router)
        turns = []
        for _ in range(2):
            turns += ask(router, NOBODYS)
            assert ask(router, OF1, OF2) == [f"ISP1 {OF1}"] * 2 + [f"ISP2 {OF2}"] * 2
            assert ask(router, OF1, protos=["udp"]) == [f"ISP1 {OF1}"]  # an odd number of them
        assert [turn.split()[0] for turn in turns] == {
            "": ["ISP1", "ISP2"] * 2,  # the others have taken no turn
            'balance = "hash"': [turns[0].split()[0]] * 4,
            "tiers": ["ISP1"] * 4,
        }[options]
        assert heard() == 0
        for down, up in (("ISP2", OF1), ("ISP1", OF2)):
            router.say(down, "down")
            router.rebuild()
            before = heard()
            lost = OF1 if up == OF2 else OF2
            said = ask(router, lost, up, NOBODYS, protos=["udp"])
            assert said == [REFUSED, f"{OWNER[up]} {up}", f"{OWNER[up]} {NOBODYS}"]
            assert heard() == before + 1
            router.say(down, "up")
        router.rebuild()
        assert (router.foreign(), router.idle()) == (0, True)


def test_whoever_cannot_leave_is_told_whatever_is_broken(tmp_path: Path) -> None:
    with rig(tmp_path, prefixes(), "ISP2") as router:
        router.rebuild()
        heard = told(router)
        for fault in ("verdict", "cable", "address", "interface"):
            if fault == "verdict":
                router.say("ISP1", "down")
            elif fault == "cable":
                router.lab.pull_cable("ISP1")
            else:
                router.shell("ip -6 address flush dev eth2\n" if fault == "address" else "ip link del dev eth2\n")
            router.rebuild()
            before = heard()
            assert ask(router, OF1, OF2, protos=["udp"]) == [REFUSED, f"ISP2 {OF2}"], fault
            assert heard() == before + 1, fault
            assert router.idle()
            if fault == "verdict":
                router.say("ISP1", "up")
        assert router.foreign() == 0


@pytest.mark.parametrize("freed", [True, False])
def test_connections_of_an_isp_that_goes_down(tmp_path: Path, freed: bool) -> None:
    """They are told at once, or stay with it; none is sent by another ISP."""
    options = f"flush_conntrack = {str(freed).lower()}"
    with rig(tmp_path, prefixes(options=options, lans=LANS[1:2])) as router:
        router.rebuild()
        heard = told(router)
        with LongFlows(router.lab, LAN, 4, PROTOS, (6,)) as long:
            wait_until(lambda: len(long.isps()) == 4, what="long flows")
            assert set(long.isps().values()) == {"ISP1"}
            router.say("ISP1", "down")
            router.rebuild()
            if freed:
                wait_until(lambda: sum(each.event == "broken" for each in long.events) == 2, what="TCP to hear")
                wait_until(heard, what="UDP to hear")
            else:
                assert ask(router, OF1, protos=["udp"]) == [REFUSED]
            ends = [event for event in long.stop() if event.event == "end"]
        assert [event.broken for event in ends] == [freed, False] * 2
        assert freed or not any(event.longest_gap_ms > 1000 for event in ends), ends
        assert {event.why for event in long.events if event.event == "broken"} <= {"Connection reset by peer"}
        assert router.foreign() == 0


def test_with_every_isp_down(tmp_path: Path) -> None:
    with rig(tmp_path, prefixes(), "ISP1") as router:
        for isp in OWNER.values():
            router.say(isp, "down")
        for way, nobodys in (
            ("all", {f"ISP1 {NOBODYS}", f"ISP2 {NOBODYS}"}),
            ("flush", {f"ISP1 {NOBODYS}"}),
            ("unreachable", {REFUSED}),
        ):
            router.configure(prefixes(options=f'when_all_down = "{way}"'))
            router.rebuild()
            assert ask(router, NOBODYS, protos=["tcp"])[0] in nobodys
            said = ask(router, OF1, OF2, protos=["udp"])
            assert said == ([f"ISP1 {OF1}", f"ISP2 {OF2}"] if way == "all" else [REFUSED] * 2)
            assert (router.foreign(), router.idle()) == (0, True)


def test_the_routers_own_sockets(tmp_path: Path) -> None:
    """Those that test an ISP which is down among them."""
    with rig(tmp_path, prefixes("legacy"), "ISP2") as router:
        own = ["2001:db8:101:1::1", "2001:db8:102:1::1", "2001:db8:0:1::1"]
        router.say("ISP1", "down")
        router.rebuild()
        answers = [f"{isp} {each}" for each, isp in zip(own, ("ISP1", "ISP2", "ISP1"), strict=True) for _ in PROTOS]
        assert ask(router, *own, node=ROUTER) == answers
        to = str(router.lab.server[6])
        assert router.talk(ROUTER, [Talk(to, "udp", own[0], "eth3")]) == ["[Errno 1] Operation not permitted"]
        router.shell("ip link set eth2 down\n")
        router.rebuild()
        assert ask(router, own[0], node=ROUTER) == [REFUSED, "[Errno 1] Operation not permitted"]
        assert router.foreign() == 0


def test_another_isps_own_network_is_for_its_own_sources(tmp_path: Path) -> None:
    """Main knows it better than a default, but not for whom."""
    with rig(tmp_path, prefixes()) as router:
        router.rebuild()
        router.listen(isp_node("ISP2"), 7000)
        talks = [Talk("2001:db8:0:2::2", "tcp", each, port=7000) for each in (OF2, NOBODYS, OF1)]
        assert router.talk(lan_node(LAN), talks) == [OF2, NOBODYS, REFUSED]
        # What stays inside is nobody's business.
        for node in (lan_node("rnd"), ROUTER):
            router.listen(node, 7000)
        inside = ["2001:db8:a:2::2", "2001:db8:102:2::2", "2001:db8:102:1::1"]
        talks = [Talk(to, "tcp", each, port=7000) for to in inside for each in (OF1, OF2)]
        assert router.talk(lan_node(LAN), talks) == [OF1, OF2] * 3
        assert router.foreign() == 0


@pytest.mark.parametrize("lans", [LANS, LANS[1:]])
def test_the_routers_own_connections_use_who_is_up(tmp_path: Path, lans: Sequence[str]) -> None:
    """From an address of a LAN that is no ISP's they are balanced; if there is none they have their ISP's own."""
    with rig(tmp_path, prefixes(options='local_traffic = "balance"', lans=lans)) as router:
        for down, up in (("", ["ISP1", "ISP2"]), ("ISP1", ["ISP2"]), ("ISP2", ["ISP1"])):
            for isp in OWNER.values():
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            said = ask(router, *[""] * 2, node=ROUTER)
            sources = (
                [f"{isp} 2001:db8:a:1::1" for isp in up] if lans == LANS else [f"{up[0]} 2001:db8:0:{up[0][-1]}::1"]
            )
            assert {*said} == {*sources}
        assert router.foreign() == 0


def test_what_comes_in_by_an_isp_is_answered_by_it(tmp_path: Path) -> None:
    """And what comes in for no LAN does not go back and forth until its hops are used up."""
    with rig(tmp_path, prefixes(), "ISP2") as router:
        router.listen(lan_node(LAN), 7000)
        server = str(router.lab.server[6])
        talks = [Talk(to, "tcp", server, router.lab.link(isp), 7000) for to, isp in OWNER.items()]
        talks.append(Talk("2001:db8:101:77::2", "tcp", server, router.lab.link("ISP1"), PORT))
        returned = [router.arrived(isp, "-d 2001:db8:101:77::/64", 6) for isp in OWNER.values()]
        for text in ("up", "down"):
            router.say("ISP1", text)
            router.rebuild()
            assert router.talk(INTERNET, talks) == [server, server, REFUSED]
        assert [count() for count in returned] == [0, 0]
        assert router.foreign() == 0
