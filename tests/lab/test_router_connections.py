"""A connection keeps its ISP whatever happens, and nothing ever leaves by an ISP with another's address (R2)."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from lsmpy import flows
from lsmpy.lab import INTERNET, PORT, isp_node, lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, configuration, rig, source

pytestmark = pytest.mark.lab

ISPS = ("ISP1", "ISP2")
# Connections of an ISP that goes down would be freed; what is shown here is what keeps them until then.
KEEP = "flush_conntrack = false"
# Opens a socket for each port, and on every line of standard input sends a datagram from each.
DATAGRAMS = """
import socket, sys
to, port, first, count = sys.argv[1], *map(int, sys.argv[2:])
socks = []
for number in range(count):
    sock = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("", first + number))
    socks.append(sock)
for _ in sys.stdin:
    for sock in socks:
        sock.sendto(b"more\\n", (to, port))
"""
# Begins to connect from each port, and waits to be ended.
SYNS = """
import signal, socket, sys
to, port, first, count = sys.argv[1], *map(int, sys.argv[2:])
socks = []
for number in range(count):
    sock = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.bind(("", first + number))
    sock.connect_ex((to, port))
    socks.append(sock)
signal.pause()
"""
# Sends TCP segments that belong to no connection, with each of the given flags from a port of its own; with a further
# argument, there is a connection on each of these ports, and the segments are far out of its window.
SEGMENTS = """
import socket, struct, sys
me, to, port, first, flags = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), bytes.fromhex(sys.argv[5])
family = socket.AF_INET6 if ":" in to else socket.AF_INET
if len(sys.argv) > 6:
    for number in range(len(flags)):
        globals()[f"held{number}"] = socket.create_connection((to, port), source_address=("", first + number))
sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)
for number, flag in enumerate(flags):
    segment = struct.pack("!HHIIBBHHH", first + number, port, 1000000, 2000000, 5 << 4, flag, 1000, 0, 0)
    pseudo = socket.inet_pton(family, me) + socket.inet_pton(family, to)
    pseudo += struct.pack("!BBH" if family == socket.AF_INET else "!xxIxxxB", *(
        (0, 6, len(segment)) if family == socket.AF_INET else (len(segment), 6)))
    total = sum(struct.unpack(f"!{len(pseudo + segment) // 2}H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    sock.sendto(segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:], (to, 0))
"""
SYN, FIN, RST, ACK, PSH = 0x02, 0x01, 0x04, 0x10, 0x08
COMBINATIONS = [
    ("snat", "nft", None),
    ("snat", "legacy", "ISP1"),
    ("none", "nft", "ISP2"),
    ("npt", "nft", "ISP1"),
]


class Arrivals:
    """How many packets with each source port came to each ISP, counted by the kernel."""

    def __init__(self, router: Rig, proto: str, family: Family, ports: range) -> None:
        self._lab, self._proto, self._ports = router.lab, proto, ports
        self._tool = "iptables" if family == 4 else "ip6tables"
        match = f"-i router -p {proto} {'--tcp-flags SYN,ACK SYN' if proto == 'tcp' else ''}"
        rules = (f"{self._tool} -w -t mangle -A PREROUTING {match} --sport {port}\n" for port in ports)
        script = "".join(rules)
        for isp in ISPS:
            self._lab.shell(isp_node(isp), script)

    def now(self) -> dict[int, Counter[str]]:
        found = {port: Counter[str]() for port in self._ports}
        for isp in ISPS:
            saved = self._lab.run(isp_node(isp), f"{self._tool}-save", "-c", "-t", "mangle")
            for count, port in re.findall(rf"\[(\d+):.* -p {self._proto} .*--sport (\d+)", saved):
                found[int(port)] += Counter({isp: int(count)})
        return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("ipv6", "backend", "default"), COMBINATIONS)
def test_repeated_first_packets_leave_by_the_same_isp(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, family: Family
) -> None:
    """SYNs and datagrams that nobody answers are NEW each time, also after others were chosen meanwhile."""
    ports = range(40000, 40006)
    with rig(tmp_path, configuration((1, 1), ipv6, backend, KEEP), default, server=False) as router:
        router.rebuild()
        for isp in ISPS:
            router.lab.kill_upstream(isp)
        server = [str(router.lab.server[family]), str(PORT), str(ports[0]), str(len(ports))]
        syns, datagrams = Arrivals(router, "tcp", family, ports), Arrivals(router, "udp", family, ports)
        router.lab.start(lan_node(LAN), [sys.executable, "-c", SYNS, *server])
        router.lab.run(lan_node(LAN), sys.executable, "-c", DATAGRAMS, *server, stdin="\n\n\n")
        wait_until(lambda: all(datagrams.now().values()), what="the first datagrams")
        router.say("ISP2", "down")
        router.rebuild()
        router.lab.run(lan_node(LAN), sys.executable, "-c", DATAGRAMS, *server, stdin="\n\n\n")
        wait_until(lambda: all(sum(c.values()) > 1 for c in syns.now().values()), what="SYNs to be repeated")
        seen = datagrams.now()
        assert [len(isps) for isps in seen.values()] == [1] * len(ports), seen
        assert [isps.total() for isps in seen.values()] == [6] * len(ports), seen
        assert {isp for isps in seen.values() for isp in isps} == set(ISPS)
        repeated = syns.now()
        assert [len(isps) for isps in repeated.values()] == [1] * len(ports), repeated
        assert {isp for isps in repeated.values() for isp in isps} == set(ISPS)
        assert router.foreign() == 0


@pytest.mark.parametrize(("ipv6", "backend", "default"), COMBINATIONS)
def test_long_flows_keep_their_isp_while_it_is_said_to_be_down(
    tmp_path: Path, ipv6: str, backend: str, default: str | None
) -> None:
    with rig(tmp_path, configuration((1, 1), ipv6, backend, KEEP), default) as router:
        router.rebuild()
        with flows.LongFlows(router.lab, LAN, 8, ("tcp", "udp"), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="long flows")
            for text in ("down", "up") * 3:
                router.say("ISP2", text)
                router.rebuild()
                assert {flow.isp for flow in router.send(4, ("tcp", "udp"), FAMILIES)} == (
                    {"ISP1"} if text == "down" else set(ISPS)
                )
            events = long.stop()
        assert Counter(event.isp for event in events if event.event == "isp") == {"ISP1": 4, "ISP2": 4}
        ends = [event for event in events if event.event == "end"]
        assert len(ends) == 8
        assert not any(event.broken or event.longest_gap_ms > 1000 for event in ends), ends
        assert router.foreign() == 0


@pytest.mark.parametrize(
    ("ipv6", "backend", "default", "fault"),
    [
        (*COMBINATIONS[0], "interface"),
        (*COMBINATIONS[1], "cable"),
        (*COMBINATIONS[1], "interface"),
        (*COMBINATIONS[2], "cable"),
    ],
)
def test_flows_of_a_lost_link_never_leave_by_another(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, fault: str
) -> None:
    """Neither before a rebuild nor after it; also when main has a default by the healthy ISP."""
    with rig(tmp_path, configuration((1, 1), ipv6, backend, KEEP), default) as router:
        router.rebuild()
        with flows.LongFlows(router.lab, LAN, 8, ("tcp", "udp"), FAMILIES) as long:
            wait_until(lambda: len(long.isps()) == 8, what="long flows")
            began = long.isps()
            router.lab.pull_cable("ISP2") if fault == "cable" else router.shell("ip link set eth3 down\n")
            sent = router.arrived("ISP1", "-p udp")
            wait_until(lambda: sent() > 40, what="a second of the healthy flows")
            router.rebuild()
            after = sent()
            wait_until(lambda: sent() > after + 40, what="another second of them")
            assert {flow.isp for flow in router.send(4, ("tcp", "udp"), FAMILIES)} == {"ISP1"}
            events = long.stop()
        assert long.isps() == began
        assert sum(event.event == "isp" for event in events) == 8
        for event in events:
            if event.event == "end" and began[event.flow] == "ISP1":
                assert not event.broken
                assert event.longest_gap_ms <= 1000
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("ipv6", "backend", "default"), [("snat", "nft", None), ("snat", "legacy", "ISP1"), ("npt", "nft", "ISP2")]
)
def test_what_belongs_to_no_connection_does_not_leave_untranslated(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, family: Family
) -> None:
    """Segments that conntrack calls INVALID, and ones out of the middle of a connection that it has never seen."""
    flags = bytes([RST, SYN | ACK, FIN, FIN | SYN, PSH | FIN, 0, ACK, PSH | ACK, FIN | ACK])
    with rig(tmp_path, configuration((1, 1), ipv6, backend), default, server=False) as router:
        router.rebuild()
        me, to = str(router.lab.host(LAN, family)), str(router.lab.server[family])
        arrived = [router.arrived(isp, "-p tcp", family) for isp in ISPS]
        for start in (41000, 42000):
            argv = [me, to, str(PORT), str(start), flags.hex()]
            router.lab.run(lan_node(LAN), sys.executable, "-c", SEGMENTS, *argv)
        # The ACKs are taken up (nf_conntrack_tcp_loose) and translated: they show that the segments are well formed.
        wait_until(lambda: sum(count() for count in arrived) >= 4, what="the segments that are taken up")
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("ipv6", "backend", "default"), [("snat", "nft", None), ("snat", "legacy", "ISP1"), ("npt", "nft", "ISP2")]
)
def test_what_is_out_of_a_connections_window_does_not_leave_untranslated_and_takes_no_turn(
    tmp_path: Path, ipv6: str, backend: str, default: str | None, family: Family
) -> None:
    with rig(tmp_path, configuration((1, 1), ipv6, backend), default) as router:
        router.rebuild()
        me, to = str(router.lab.host(LAN, family)), str(router.lab.server[family])
        turns = []
        for start in range(45000, 45050, 10):
            turns += router.send(1, ("udp",), (family,))
            # An even number of connections, so that whoever comes next has the same turn again.
            argv = [me, to, str(PORT), str(start), bytes([RST | ACK, ACK, PSH | ACK, FIN | ACK]).hex(), "established"]
            router.lab.run(lan_node(LAN), sys.executable, "-c", SEGMENTS, *argv)
        assert {flow.isp for flow in turns[::2]} == {"ISP1"}
        assert {flow.isp for flow in turns[1::2]} == {"ISP2"}
        assert router.foreign() == 0


@pytest.mark.parametrize(("ipv6", "backend", "default"), [("snat", "nft", None), ("masquerade", "legacy", "ISP2")])
def test_who_calls_a_private_address_from_outside_hears_nothing(
    tmp_path: Path, ipv6: str, backend: str, default: str | None
) -> None:
    """A host's or the router's own, by a neighbour on the ISP's link or from behind it: no NAT gives them another."""
    text = configuration((1, 1), ipv6, backend).replace("[nat]\n", f'[nat]\nipv4 = "{ipv6}"\n')
    with rig(tmp_path, text, default, server=False) as router:
        router.rebuild()
        called: list[str] = []
        asked = []
        for family in FAMILIES:
            inside = [str(router.lab.host(LAN, family)), {4: "192.168.1.254", 6: "fd00:a:0:1::1"}[family]]
            called += inside
            kind = {4: "icmp --icmp-type 8", 6: "icmpv6 --icmpv6-type 128"}[family]
            asked.append(router.seen(lan_node(LAN), f"-p {kind}", family))
            for isp in ISPS:
                ways = (f"ip route add {each} via {source(isp, family)}\n" for each in inside)
                router.lab.shell(isp_node(isp), "".join(ways))
        for isp in ISPS:
            for node, device in ((isp_node(isp), "router"), (INTERNET, router.lab.link(isp))):
                pings = "".join(f"ping -n -c1 -W1 -I {device} {each} >/dev/null && echo {each} &\n" for each in called)
                assert router.lab.shell(node, f"{pings}wait\n") == ""
        assert [count() for count in asked] == [4, 4]
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("ipv6", "backend", "default"), [("npt", "nft", "ISP1"), ("snat", "legacy", "ISP2")])
def test_a_flow_older_than_our_nat_does_not_leave_untranslated(
    tmp_path: Path, ipv6: str, backend: str, default: str, family: Family
) -> None:
    with rig(tmp_path, configuration((1, 1), ipv6, backend), default, server=False) as router:
        # Without a rule that needs it, the kernel tracks no connections.
        tool = "iptables" if family == 4 else "ip6tables"
        router.shell(f"{tool}-{backend} -A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n")
        sender = [sys.executable, "-c", DATAGRAMS, str(router.lab.server[family]), str(PORT), "43000", "4"]
        router.lab.run(lan_node(LAN), *sender, stdin="\n")
        wait_until(lambda: router.foreign() == 4, what="untranslated datagrams, before the first rebuild")
        arrived = [router.arrived(isp, "-p udp", family) for isp in ISPS]
        router.rebuild("--replace")
        router.lab.run(lan_node(LAN), *sender, stdin="\n\n")
        assert router.foreign() == 4
        assert [count() for count in arrived] == [0, 0]
        router.lab.run(lan_node(LAN), *[*sender[:-2], "44000", "4"], stdin="\n")
        wait_until(lambda: sum(count() for count in arrived) == 4, what="new flows to be translated")
        assert router.foreign() == 4
