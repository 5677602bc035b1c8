"""NPT: outside, the LANs' networks have each ISP's prefix, by connection (NETMAP) or by packet (RFC 6296)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lsmpy.flows import LongFlows, Proto
from lsmpy.lab import INTERNET, ROUTER, lan_node, wait_until
from tests.lab.others import OURS, theirs
from tests.lab.router_kit import LAN, Rig, Talk, configuration, rig

pytestmark = pytest.mark.lab

ISPS = ("ISP1", "ISP2")
LANS = {"dev": "fd00:a:0:1::2", "rnd": "fd00:a:0:2::2"}
PROTOS: tuple[Proto, ...] = ("tcp", "udp")
REFUSED = "[Errno 13] Permission denied"
STRANGER = "2001:db8:77::2"


def translating(
    kind: str = "npt", backend: str = "auto", options: str = "", prefix: str = "2001:db8:10{}:e00::/56"
) -> str:
    """With `tiers` for an option, ISP2 is the backup."""
    text = configuration(ipv6=kind, backend=backend, router="" if options == "tiers" else options, prefix=prefix)
    return text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n') if options == "tiers" else text


def outside(isp: str, inside: str) -> str:
    """What NETMAP makes of an address of the LANs: the subnet's last byte and the host stay."""
    rest = int(IPv6Address(inside)) & (1 << 72) - 1
    return str(IPv6Address(int(IPv6Address(f"2001:db8:10{isp[-1]}:e00::")) | rest))


def neutral(isp: str, inside: str) -> str:
    """What RFC 6296, 3.5, makes of it: the first word of the host takes up what the prefix adds to the checksum."""
    before, after = (IPv6Address(each).packed for each in (inside, outside(isp, inside)))
    words = [[int.from_bytes(each[place : place + 2]) for place in range(0, 16, 2)] for each in (before, after)]
    words[1][4] = (words[1][4] + sum(words[0]) - sum(words[1])) % 0xFFFF
    return str(IPv6Address(b"".join(word.to_bytes(2) for word in words[1])))


def ask(router: Rig, *sources: str, node: str = lan_node(LAN), protos: Sequence[Proto] = PROTOS) -> list[str]:
    """By which ISP, and from which address, the server was asked from each of these; or what was heard instead."""
    to = str(router.lab.server[6])
    return router.talk(node, [Talk(to, proto, each) for each in sources for proto in protos])


def calls(router: Rig, *ways: tuple[str, str]) -> list[str]:
    """What a client in the internet hears who calls these addresses, each by an ISP."""
    server = str(router.lab.server[6])
    return router.talk(INTERNET, [Talk(to, "tcp", server, router.lab.link(isp), 7000) for isp, to in ways])


@pytest.mark.parametrize(
    ("backend", "default", "options"),
    [
        ("nft", None, ""),
        ("legacy", "ISP2", 'balance = "hash"\nmark_mask = 0xff00'),
        ("nft", "ISP1", "tiers"),
    ],
)
def test_each_lan_has_a_network_in_each_isps_prefix(
    tmp_path: Path, backend: str, default: str | None, options: str
) -> None:
    with rig(tmp_path, translating(backend=backend, options=options), default) as router:
        router.rebuild()
        for lan, host in LANS.items():
            sent = router.send(8, PROTOS, [6], lan)
            assert {(flow.ok, flow.source) for flow in sent} <= {(True, outside(isp, host)) for isp in ISPS}
            used = {flow.isp for flow in sent}
            assert all(flow.source == outside(flow.isp, host) for flow in sent)
            assert used == ({"ISP1"} if options == "tiers" else used if "hash" in options else {*ISPS})
        for down, up in (ISPS, ISPS[::-1]):
            router.say(down, "down")
            router.say(up, "up")
            router.rebuild()
            for lan, host in LANS.items():
                assert ask(router, host, node=lan_node(lan)) == [f"{up} {outside(up, host)}"] * 2
        assert (router.idle(), router.foreign()) == (True, 0)


@pytest.mark.parametrize(("backend", "default", "options"), [("nft", "ISP1", ""), ("legacy", "ISP2", "tiers")])
def test_what_comes_in_for_a_prefix_is_answered_by_its_isp(
    tmp_path: Path, backend: str, default: str | None, options: str
) -> None:
    """To hosts and to the router itself, whichever is down; and what belongs to no host goes no further."""
    with rig(tmp_path, translating(backend=backend, options=options), default) as router:
        for node in (ROUTER, *map(lan_node, LANS)):
            router.listen(node, 7000)
        inside = [*LANS.values(), "fd00:a:0:1::1"]
        ways = [(isp, outside(isp, each)) for isp in ISPS for each in inside]
        ways += [("ISP1", "2001:db8:0:1::1"), ("ISP2", "2001:db8:0:2::1")]
        for down in ("", *ISPS):
            for isp in ISPS:
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            assert calls(router, *ways) == [str(router.lab.server[6])] * len(ways)
        returned = router.arrived("ISP1", "-d 2001:db8:101::/48", 6)
        assert calls(router, ("ISP1", outside("ISP1", "fd00:a:0:77::2"))) == [REFUSED]
        assert (returned(), router.foreign()) == (0, 0)


def test_what_no_prefix_has_a_place_for_does_not_leave(tmp_path: Path) -> None:
    """Its sender is told. What is an ISP's own stays what it is, and the router's LAN addresses are as their LANs."""
    with rig(tmp_path, translating(), "ISP2") as router:
        router.rebuild()
        router.lab.shell(lan_node(LAN), f"ip addr add {STRANGER}/64 dev router nodad\n")
        router.shell("ip -6 route add 2001:db8:77::/64 dev eth0\n")
        arrived = [router.arrived(isp, f"-s {STRANGER}", 6) for isp in ISPS]
        told = router.seen(lan_node(LAN), "-p icmpv6 --icmpv6-type 1/5", 6)
        assert ask(router, STRANGER, STRANGER, protos=["udp"]) == [REFUSED] * 2
        assert told() == 2
        own = ["2001:db8:0:1::1", "2001:db8:0:2::1", "fd00:a:0:1::1"]
        answers = ask(router, *own, node=ROUTER)
        assert answers[:4] == [f"{isp} {each}" for isp, each in zip(ISPS, own, strict=False) for _ in PROTOS]
        assert {*answers[4:]} == {f"{isp} {outside(isp, own[2])}" for isp in ISPS}  # balanced like its LAN's
        assert [count() for count in arrived] == [0, 0]
        # Whether an address of the router's is free is asked from no address at all.
        asked = router.arrived("ISP1", "-s ::/128 -p icmpv6 --icmpv6-type 135", 6)
        router.shell("echo 1 >/proc/sys/net/ipv6/conf/eth2/accept_dad\nip addr add 2001:db8:0:1::5/64 dev eth2\n")
        wait_until(asked, what="duplicate address detection")
        assert router.foreign() == 0


def test_connections_keep_their_isp_and_its_prefix(tmp_path: Path) -> None:
    """Those of an ISP that goes down are freed, and conversations go on by another with its prefix."""
    with rig(tmp_path, translating()) as router:
        router.rebuild()
        with LongFlows(router.lab, LAN, 8, PROTOS, (6,)) as long:
            wait_until(lambda: len(long.isps()) == 8, what="long flows")
            began = long.isps()
            assert {*began.values()} == {*ISPS}
            router.say("ISP1", "down")
            router.rebuild()
            talking = [flow for flow, isp in began.items() if flow % 2 and isp == "ISP1"]
            wait_until(lambda: all(long.isps()[flow] == "ISP2" for flow in talking), what="conversations to move")
            events = long.stop()
        for event in events:
            if event.event == "isp":
                assert event.source == outside(event.isp, LANS[LAN])
            if event.event == "end" and began[event.flow] == "ISP2":
                assert not event.broken
                assert event.longest_gap_ms <= 1000
        assert router.foreign() == 0


def test_the_routers_own_connections_are_balanced_too(tmp_path: Path) -> None:
    """From an address of a LAN, as all that is nobody's outside."""
    with rig(tmp_path, translating(options='local_traffic = "balance"')) as router:
        for down, up in (("", ISPS), ("ISP1", ISPS[1:]), ("ISP2", ISPS[:1])):
            for isp in ISPS:
                router.say(isp, "down" if isp == down else "up")
            router.rebuild()
            said = ask(router, *[""] * 2, node=ROUTER)
            assert {*said} == {f"{isp} {outside(isp, 'fd00:a:0:1::1')}" for isp in up}
        assert router.foreign() == 0


def test_a_prefix_for_each_lan(tmp_path: Path) -> None:
    text = re.sub(r"'2001:db8:(10.):e00::/56'", r"'2001:db8:\1:aaaa::/64', '2001:db8:\1:bbbb::/64'", translating())
    with rig(tmp_path, text) as router:
        router.rebuild()
        for lan, subnet in (("dev", "aaaa"), ("rnd", "bbbb")):
            sent = router.send(4, PROTOS, [6], lan)
            assert {(flow.isp, flow.source) for flow in sent} == {
                (isp, f"2001:db8:10{isp[-1]}:{subnet}::2") for isp in ISPS
            }
        assert router.foreign() == 0


@pytest.mark.parametrize(
    ("kinds", "options"),
    [
        (["none"], ""),
        (["npt-stateless", "npt"], "tiers"),
        (["npt-stateless", "npt"], 'flush = "own"\nbalance = "hash"\nmark_mask = 0xffffffff'),
    ],
)
def test_the_script_does_the_same(tmp_path: Path, kinds: list[str], options: str) -> None:
    with rig(tmp_path, translating(kinds[0], options=options), server=False) as router:
        for kind in kinds:
            router.configure(translating(kind, options=options))
            for _ in range(2):
                router.shell(router.reconfig("--dry-run").out)
                assert router.reconfig("--diff").out == ""


# -- by packet -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "default", "options"),
    [("legacy", "ISP2", 'balance = "hash"\nlocal_traffic = "balance"'), ("nft", "ISP2", "tiers")],
)
def test_packets_are_translated_without_a_memory(
    tmp_path: Path, backend: str, default: str | None, options: str
) -> None:
    text = translating("npt-stateless", backend, options)
    with rig(tmp_path, text, default) as router:
        router.rebuild()
        assert router.idle()
        for node in (ROUTER, *map(lan_node, LANS)):
            router.listen(node, 7000)
        server = str(router.lab.server[6])
        homes = {}
        for lan, host in LANS.items():
            sent = router.send(4, PROTOS, [6], lan)
            (homes[lan],) = {flow.isp for flow in sent}
            assert {(flow.ok, flow.source) for flow in sent} == {(True, neutral(homes[lan], host))}
            # An error on the way comes from nobody whom the host has called.
            for number in range(16, 16 + 6 * (options != "tiers")):
                me = f"{host[:-1]}{number:x}"
                router.lab.shell(lan_node(lan), f"ip addr add {me}/64 dev router nodad preferred_lft 0\n")
                said = router.anyhow("ping", "-6", "-c1", "-W2", "-t2", "-I", me, server, node=lan_node(lan)).out
                assert "Time exceeded" in said, said
        assert "fd00:a:" not in router.lab.run(ROUTER, "conntrack", "-L", "-f", "ipv6")
        # LANs, the router, and what it says itself are tracked as ever.
        inside = [Talk(to, "tcp", port=7000) for to in (LANS["rnd"], "fd00:a:0:1::1", "2001:db8:0:1::1")]
        assert router.talk(lan_node(LAN), inside) == [LANS[LAN]] * 3
        own = ["2001:db8:0:1::1", "2001:db8:0:2::1"]
        assert ask(router, *own, node=ROUTER) == [f"ISP{each[-4]} {each}" for each in own for _ in PROTOS]
        # What comes in by the ISP of its pair is answered by it, what comes in by another is refused at once.
        # That is so of the router's own addresses in the LANs, too, whose pairs with the server are anybody's by hash.
        for address in ("fd00:a:0:1::1", "fd00:a:0:2::1"):
            heard = calls(router, *((isp, neutral(isp, address)) for isp in ISPS))
            assert heard == [server, REFUSED] or ("hash" in options and heard == [REFUSED, server])
        ways = [(isp, neutral(isp, host), lan) for lan, host in LANS.items() for isp in ISPS]
        assert calls(router, *(way[:2] for way in ways)) == [
            server if isp == homes[lan] else REFUSED for isp, _, lan in ways
        ]
        assert calls(router, ("ISP1", own[0]), ("ISP2", own[1])) == [server] * 2
        if "local" in options:
            assert ask(router, "", node=ROUTER) == [f"ISP1 {own[0]}"] * 2
        router.say("ISP1", "down")
        router.rebuild()
        for lan, host in LANS.items():
            assert ask(router, host, node=lan_node(lan)) == [f"ISP2 {neutral('ISP2', host)}"] * 2
        assert calls(router, *(way[:2] for way in ways)) == [REFUSED, server] * 2
        router.configure(translating("npt", backend, options))
        router.rebuild()
        assert (router.idle(), "NOTRACK" in "".join(router.dump())) == (True, False)
        assert ask(router, LANS[LAN]) == [f"ISP2 {outside('ISP2', LANS[LAN])}"] * 2
        assert router.foreign() == 0


# Of somebody who counts, who marks what the LANs send for a queue, and who lets in nothing but what is not tracked.
BESIDE = """*raw
:COUNT - [0:0]
-A PREROUTING -i eth0 -j COUNT
-A COUNT -d {server} -m comment --comment sent
-A OUTPUT -o eth9 -j NOTRACK
COMMIT
*mangle
-A {hook} -i eth0 -j MARK --set-xmark 0x80000/0xff0000
-A POSTROUTING -s 2001:db8:100::/40 -d {server} -m mark --mark 0x80000/0xff0000 -m comment --comment left
COMMIT
*nat
-A POSTROUTING -o eth9 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -i eth0 -j ACCEPT
-A FORWARD -d fd00:a::/32 -m conntrack --ctstate UNTRACKED -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize(
    ("backend", "options", "hook", "first"),
    [
        ("nft", 'flush = "own"\nbalance = "hash"\nmark_mask = 0xffffffff', "FORWARD", "others"),
        ("legacy", 'flush = "own"', "PREROUTING", "lsmpy"),
    ],
)
def test_packets_are_translated_beside_others(
    tmp_path: Path, backend: str, options: str, hook: str, first: str
) -> None:
    text = translating("npt-stateless", backend, options)
    if "hash" not in options:
        text = text.replace('name = "ISP2"\n', 'name = "ISP2"\ntier = 2\n')
    with rig(tmp_path, text, "ISP2") as router:
        server = str(router.lab.server[6])
        router.listen(lan_node(LAN), 7000)
        if first == "lsmpy":
            router.rebuild()
        beside = BESIDE.format(hook=hook, server=server)
        router.shell(f"ip6tables-{backend}-restore --noflush <<'END'\n{beside}END\n")
        left = theirs(router)
        for down, up in (ISPS, ISPS[::-1]):
            router.say(down, "down")
            router.say(up, "up")
            router.rebuild()
            assert (router.idle(), theirs(router)) == (True, left)
            assert ask(router, LANS[LAN]) == [f"{up} {neutral(up, LANS[LAN])}"] * 2
            assert calls(router, *((isp, neutral(isp, LANS[LAN])) for isp in (up, down))) == [server, REFUSED]
        saved = router.shell(f"ip6tables-{backend}-save -c\n")
        sent, gone = (int(found[1]) for found in re.finditer(r"\[(\d+):.*--comment (?:sent|left)", saved))
        assert sent == gone > 10, saved
        assert "fd00:a:" not in router.lab.run(ROUTER, "conntrack", "-L", "-f", "ipv6")
        assert router.foreign() == 0
        router.rebuild("--clear")
        assert theirs(router) == left
        assert [line for line in router.dump() if OURS.search(line) or " proto 76" in line] == []
