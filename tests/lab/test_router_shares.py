"""Shares by dice and by hash over 10,000 connections, and pairs of client and server that keep their ISP (R1, R2)."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lsmpy.lab import INTERNET, ROUTER, lan_node
from lsmpy.model import FAMILIES, Family
from tests.lab.router_kit import LAN, Rig, configuration, rig

pytestmark = pytest.mark.lab

# Chi-square's value that is passed once in a million times, by degrees of freedom.
UNBELIEVABLE = {1: 23.9, 2: 27.6, 3: 30.7}
CLIENTS: Mapping[Family, str] = {4: "192.168.1.0", 6: "fd00:a:0:1::ff00"}
SERVERS: Mapping[Family, str] = {4: "198.18.7.0", 6: "2001:db8:beef::"}
_SEND = """
import socket, sys, time
from ipaddress import ip_address
proto, client, clients, server, servers, port = sys.argv[1:]
family, level, freebind = (socket.AF_INET6, 41, 78) if ":" in client else (socket.AF_INET, 0, 15)
for source in range(1, int(clients) + 1):
    for target in range(1, int(servers) + 1):
        with socket.socket(family, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.setsockopt(level, freebind, 1)
            sock.bind((str(ip_address(client) + source), int(port)))
            sock.connect_ex((str(ip_address(server) + target), int(port)))
            if proto == "udp":
                sock.send(b"x")
    time.sleep(0.001)
"""
Chosen = dict[tuple[str, str], str]


def prepare(router: Rig) -> None:
    """A LAN's host with many addresses, and an internet that swallows what is sent to the many servers."""
    router.lab.shell(
        lan_node(LAN), "ip route add local 192.168.1.0/25 dev lo\nip route add local fd00:a:0:1::ff00/120 dev lo\n"
    )
    router.lab.shell(INTERNET, "ip route add blackhole 198.18.7.0/24\nip route add blackhole 2001:db8:beef::/48\n")
    router.rebuild()
    router.send(20, families=FAMILIES)  # everybody has met his neighbours


def choose(
    router: Rig, family: Family, clients: int, servers: int, proto: str = "udp", port: int = 9, mask: int = 0xFFFFFFFF
) -> Chosen:
    """By which ISP each pair goes: every client sends something to every server, and conntrack knows the marks."""
    router.shell("conntrack -F 2>&1\n")
    words = map(str, (proto, CLIENTS[family], clients, SERVERS[family], servers, port))
    router.lab.run(lan_node(LAN), sys.executable, "-c", _SEND, *words)
    listing = router.lab.run(ROUTER, "conntrack", "-L", "-f", f"ipv{family}", "-p", proto)
    found = re.findall(rf"^{proto} .*? src=(\S+) dst=(\S+) .*? dport={port} .*?\bmark=(\d+)", listing, re.MULTILINE)
    names = {router.lab.router.mark_value(isp): isp.name for isp in router.lab.router.isps}
    chosen = {(source, target): names[int(mark) & mask] for source, target, mark in found}
    assert len(chosen) == clients * servers
    return chosen


def chi_square(chosen: Chosen, weights: Mapping[str, int]) -> float:
    count, total = Counter(chosen.values()), sum(weights.values())
    assert count.keys() == weights.keys()
    expected = {name: len(chosen) * weight / total for name, weight in weights.items()}
    return sum((count[name] - each) ** 2 / each for name, each in expected.items())


@pytest.mark.parametrize(
    ("balance", "weights", "backend", "family"),
    [
        ("random", (1, 1, 1), "nft", 4),
        ("random", (5, 3, 2), "legacy", 6),
        ("hash", (1, 1), "legacy", 6),
        ("hash", (1, 1, 1), "nft", 4),
        ("hash", (5, 3, 2), "nft", 6),
        ("hash", (4, 3, 2, 1), "legacy", 4),
    ],
)
def test_ten_thousand_connections_are_shared_by_weight(
    tmp_path: Path, balance: str, weights: Sequence[int], backend: str, family: Family
) -> None:
    text = configuration(weights, backend=backend, router=f'balance = "{balance}"')
    shares = {f"ISP{number}": weight for number, weight in enumerate(weights, 1)}
    with rig(tmp_path, text) as router:
        prepare(router)
        for down in (None, "ISP2"):
            if down:
                router.say(down, "down")
                router.rebuild()
                del shares[down]
            chosen = choose(router, family, 100, 100)
            assert chi_square(chosen, shares) < UNBELIEVABLE.get(len(shares) - 1, 0.001), Counter(chosen.values())
        assert router.foreign() == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mask", "backend"), [(0xFFFFFFFF, "nft"), (0xFF00, "nft"), (0xF0, "legacy")])
def test_a_pair_keeps_its_isp_and_only_a_lost_isps_pairs_move(
    tmp_path: Path, mask: int, backend: str, family: Family
) -> None:
    text = configuration((3, 2, 1), backend=backend, router=f'balance = "hash"\nmark_mask = {mask:#x}')
    with rig(tmp_path, text) as router:
        prepare(router)
        first = choose(router, family, 20, 20, mask=mask)
        assert set(first.values()) == {"ISP1", "ISP2", "ISP3"}
        assert choose(router, family, 20, 20, "tcp", 443, mask) == first
        for down in ("ISP1", "ISP3"):
            router.say(down, "down")
            router.rebuild()
            then = choose(router, family, 20, 20, port=53, mask=mask)
            assert {pair: isp for pair, isp in then.items() if first[pair] != down} == {
                pair: isp for pair, isp in first.items() if isp != down
            }
            assert len({then[pair] for pair in then if first[pair] == down}) == 2
            router.say(down, "up")
            router.rebuild()
            assert choose(router, family, 20, 20, mask=mask) == first
        router.rebuild("--clear")
        router.rebuild()
        assert choose(router, family, 20, 20, "tcp", 80, mask) == first
        assert router.foreign() == 0
        assert router.idle()


def test_turns_keep_no_pair(tmp_path: Path) -> None:
    """What the test above says is not so by itself."""
    with rig(tmp_path, configuration((3, 2, 1))) as router:
        prepare(router)
        assert choose(router, 4, 20, 19) != choose(router, 4, 20, 19, port=53)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_others_bits_survive_the_hash(tmp_path: Path, family: Family, backend: str) -> None:
    """A mark of others in the packet, in the connection, the same or different ones in both."""
    marks = ((0, 0), (0x50001, 0), (0, 0x30002), (0x50001, 0x50001), (0x50001, 0x30002))
    lines = [
        f"-A PREROUTING -i eth0 -p udp --dport {100 + n} -j MARK --set-mark {p:#x}" for n, (p, _) in enumerate(marks)
    ]
    lines += [
        f"-A PREROUTING -i eth0 -p udp --dport {100 + n} -j CONNMARK --set-mark {c:#x}"
        for n, (_, c) in enumerate(marks)
    ]
    lines += [
        f"-A POSTROUTING -p udp --dport {100 + n} -m mark --mark {p:#x}/0xffff00ff -m comment --comment seen{n}"
        for n, (p, _) in enumerate(marks)
    ]
    (tmp_path / "rules").write_text("\n".join(["*mangle", *lines, "COMMIT\n"]))
    text = configuration(
        (1, 1, 1),
        backend=backend,
        router='balance = "hash"\nmark_mask = 0xff00',
        more=f'[rules]\nipv{family} = ["{tmp_path}/rules"]\n',
    )
    with rig(tmp_path, text) as router:
        prepare(router)
        plain = choose(router, family, 10, 10, port=99, mask=0xFF00)
        for number, (packet, connection) in enumerate(marks):
            chosen = choose(router, family, 10, 10, port=100 + number, mask=0xFF00)
            assert (chosen == plain) == (not (packet and connection) or packet == connection)
            saved = router.shell(f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-save -c -t mangle\n")
            assert re.search(rf"^\[100:.*--comment seen{number}$", saved, re.MULTILINE), saved
            listing = router.shell(f"conntrack -L -f ipv{family} -p udp --dport {100 + number} 2>/dev/null\n")
            assert {int(mark) & 0xFFFF00FF for mark in re.findall(r"\bmark=(\d+)", listing)} == {connection}
        assert router.foreign() == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_machine_without_hmark_is_told_and_left_as_it_was(tmp_path: Path, backend: str) -> None:
    (library,) = Path("/usr/lib").glob("**/xtables/libxt_HMARK.so")
    with rig(tmp_path, configuration((1, 1), backend=backend), server=False) as router:
        router.rebuild()
        before = router.dump()
        router.configure(configuration((1, 1), backend=backend, router='balance = "hash"'))
        hidden = f'mount --bind /dev/null {library}; exec "$@"'
        result = router.anyhow("unshare", "--mount", "sh", "-c", hidden, "sh", *router.argv())
        assert result.status == 1
        assert "HMARK" in result.err
        assert "the router is as it was before" in result.err
        assert router.dump() == before
