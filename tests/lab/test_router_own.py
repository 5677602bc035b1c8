"""`flush = "own"`: others' rules and marks live on, in any order of start and reload, and our flows go right."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lsmpy.lab import INTERNET, PORT, ROUTER, lan_node, wait_until
from lsmpy.model import FAMILIES, Family
from tests.lab.others import CONTAINER, OURS, PUBLISHED, Fail2ban, Firewalld, Ufw, docker, theirs
from tests.lab.router_kit import Rig, Talk, configuration, rig, source

ISPS = {"ISP1", "ISP2"}
OWN = 'flush = "own"'


def ours(router: Rig) -> list[str]:
    """What there is of ours, told by names and protocol."""
    return [line for line in router.dump() if OURS.search(line) or " proto 76" in line]


def shared_out(router: Rig, isps: set[str] = ISPS) -> None:
    """New flows of every kind go by these ISPs, and none with a foreign source."""
    assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == isps
    assert router.foreign() == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_ufw_lives_on(tmp_path: Path, backend: str) -> None:
    """It starts before us and after us, begins anew, and ends."""
    with rig(tmp_path, configuration(router=OWN, backend=backend)) as router:
        ufw = Ufw(router, tmp_path / "ufw", backend)
        for words in ("--force enable", "reload", "disable", "--force enable"):
            ufw(*words.split())
            left = theirs(router)
            assert "ufw-before-input" in router.shell(f"iptables-{backend}-save\n")
            router.rebuild()
            assert theirs(router) == left
            shared_out(router)
        assert router.idle()
        assert router.reconfig("--clear").status == 0
        assert theirs(router) == left
        assert ours(router) == []


@pytest.mark.parametrize(("frontend", "backend"), [("nftables", "nft"), ("iptables", "nft"), ("iptables", "legacy")])
def test_firewalld_lives_on(tmp_path: Path, frontend: str, backend: str) -> None:
    """With either backend it throws away all of iptables when it starts and reloads, which nft tells the daemon."""
    with rig(tmp_path, configuration(router=OWN, backend=backend)) as router:
        firewalld = Firewalld(router, tmp_path, frontend, backend)
        firewalld.start()
        left = theirs(router)
        listing = "nft list ruleset" if frontend == "nftables" else f"iptables-{backend}-save"
        assert "FWD_internal" in router.shell(f"{listing}\n")
        with router.watching() as watcher:
            assert theirs(router) == left
            shared_out(router)
            for act in (firewalld.reload, firewalld.stop, firewalld.start):
                known = len(watcher.rebuilds)
                act()
                if backend == "legacy":
                    router.say("ISP1", "up")  # the kernel tells nothing; this wakes the daemon before its time
                wait_until(lambda: len(watcher.rebuilds) > known, what="our rules to be back")  # noqa: B023
                wait_until(lambda: router.reconfig("--diff").out == "", what="our rules to be there")
                assert ("FWD_internal" in "".join(theirs(router))) == (act != firewalld.stop)
                shared_out(router)
            assert sorted(theirs(router)) == sorted(left)  # it does not always keep the same order
            left = theirs(router)
        assert router.reconfig("--clear").status == 0
        assert theirs(router) == left
        assert ours(router) == []


SSH, INNER = 7000, 7001  # the router's, and that of a host behind it
BEHIND = f"""
iptables-{{backend}} -t nat -A PREROUTING -p tcp --dport {INNER} -j DNAT --to-destination 192.168.1.1:{SSH}
ip6tables-{{backend}} -t nat -A PREROUTING -p tcp --dport {INNER} -j DNAT --to-destination [fd00:a:0:1::2]:{SSH}
"""
STRANGERS: dict[Family, tuple[str, str]] = {
    4: ("198.51.100.66", "198.51.100.67"),
    6: ("2001:db8:66::66", "2001:db8:66::67"),
}


def kept_out(router: Rig) -> set[str]:
    """Who in the internet is refused by the router and the host behind it, by each ISP; all others get in by each."""
    heard: dict[str, set[str]] = {each: set() for family in FAMILIES for each in STRANGERS[family]}
    calls = [
        Talk(source(isp, family), "tcp", each, port=port)
        for family in FAMILIES
        for each in STRANGERS[family]
        for isp in ISPS
        for port in (SSH, INNER)
    ]
    for call, said in zip(calls, router.talk(INTERNET, calls), strict=True):
        heard[call.address].add(said)
    assert all(said in ({each}, {"[Errno 111] Connection refused"}) for each, said in heard.items()), heard
    return {each for each, said in heard.items() if said != {each}}


@pytest.mark.parametrize(("backend", "first"), [("nft", "fail2ban"), ("legacy", "lsmpy")])
def test_fail2ban_lives_on(tmp_path: Path, backend: str, first: str) -> None:
    """Whom it bans is refused by the ISP that was called, and nobody else is, whoever starts, changes and ends when."""
    one, two = zip(*STRANGERS.values(), strict=True)
    banning = re.compile(r"^-A (f2b-\w+) -s (\S+)/\d+ (?:-p tcp )?-j REJECT", re.MULTILINE)
    with rig(tmp_path, configuration(router=OWN, backend=backend), "ISP1") as router:
        router.shell(BEHIND.format(backend=backend))
        router.shell("echo 0 >/proc/sys/net/ipv4/icmp_ratelimit\n")  # or each refusal is told a second later
        router.lab.shell(INTERNET, "".join(f"ip addr add {each} dev lo\n" for each in (*one, *two)))
        for node in (ROUTER, lan_node("dev")):
            router.listen(node, SSH)
        before = theirs(router)
        fail2ban = Fail2ban(router, tmp_path, backend, SSH)

        def await_bans(of: set[str]) -> None:
            rules = {(f"f2b-{jail}", each) for jail in ("sshd", "behind") for each in of}
            saves = f"iptables-{backend}-save -t filter\nip6tables-{backend}-save -t filter\n"
            wait_until(lambda: {*banning.findall(router.shell(saves))} == rules, what=f"{rules} to be there")

        if first == "lsmpy":
            router.rebuild()
        fail2ban.start()
        fail2ban.read(*one)
        await_bans({*one})
        router.rebuild()
        assert kept_out(router) == {*one}
        acts: list[tuple[Callable[[], None], set[str]]] = [
            (partial(fail2ban, "set", "sshd", "banip", *two), {*one, *two}),
            (partial(fail2ban, "unban", *one), {*two}),
            (partial(fail2ban, "reload", "--restart"), {*two}),
            (fail2ban.stop, set()),
            (fail2ban.start, {*two}),
        ]
        for number, (act, banned) in enumerate(acts):
            act()
            await_bans(banned)
            left = theirs(router)
            assert router.reconfig("--diff").out == "", "of ours nothing is lost"
            assert kept_out(router) == banned
            router.say("ISP2", ("down", "up")[number % 2])
            router.rebuild()
            assert theirs(router) == left
            assert kept_out(router) == banned
            shared_out(router, (ISPS - {"ISP2"}, ISPS)[number % 2])
        assert router.reconfig("--clear").status == 0
        assert theirs(router) == left
        assert ours(router) == []
        fail2ban.stop()
        assert theirs(router) == before


BALANCED = '[[lan]]\nname = "docker"\ninterface = "docker0"\naddress = "auto"\n'


@pytest.mark.parametrize(("backend", "balanced"), [("nft", True), ("legacy", False)])
def test_docker_lives_on(tmp_path: Path, backend: str, balanced: bool) -> None:
    """Its published port is answered by the ISP that was called; its own calls go by main, or as those of a LAN do."""
    with (
        rig(tmp_path, configuration(router=OWN, backend=backend), "ISP1") as router,
        docker(router, backend) as docks,
    ):
        router.configure(configuration(router=OWN, backend=backend, more=BALANCED if balanced else ""))
        caller = str(router.lab.server[4])
        router.listen(lan_node("dev"), 80)
        router.rebuild()
        for act in (docks.start, docks.again):
            act()
            left = theirs(router)
            assert router.idle()
            for isp in ISPS:
                answers = router.talk(INTERNET, [Talk(source(isp, 4), "tcp", caller, port=PUBLISHED)])
                assert answers == [caller], isp
            assert router.talk(lan_node("dev"), [Talk("192.168.1.254", "tcp", port=PUBLISHED)]) == ["192.168.1.1"]
            assert router.talk(CONTAINER, [Talk("192.168.1.1", "tcp", port=80)]) == ["192.168.1.254"]
            inside = router.shell("conntrack -L -s 172.17.0.2 -d 192.168.1.1 2>/dev/null\n")
            assert set(re.findall(r"\bmark=(\d+)", inside)) == {"0"}
            called = router.ask(CONTAINER, [caller], ("tcp", "udp"), 8)
            assert {flow.isp for flow in called} == (ISPS if balanced else {"ISP1"})
            assert {flow.isp for flow in router.send(8, ("tcp", "udp"))} == ISPS
        router.say("ISP1", "down")
        router.rebuild()
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"))} == {"ISP2"}
        assert {flow.isp for flow in router.ask(CONTAINER, [caller], ("tcp", "udp"), 8)} == {"ISP2"}
        assert router.foreign() == 0
        assert router.reconfig("--clear").status == 0
        assert theirs(router) == left
        assert ours(router) == []


# What wg-quick does where all is to go by the VPN (AllowedIPs = 0.0.0.0/0), with iptables.
WG_QUICK = """
ip link add wg0 type bridge
ip addr add 10.66.0.2/32 dev wg0
ip link set wg0 up
ip route add default dev wg0 table 51820
ip rule add not fwmark 51820 table 51820
ip rule add table main suppress_prefixlength 0
iptables-{backend}-restore --noflush <<'END'
*raw
-I PREROUTING ! -i wg0 -d 10.66.0.2/32 -m addrtype ! --src-type LOCAL -j DROP
COMMIT
*mangle
-I POSTROUTING -m mark --mark 51820 -p udp -j CONNMARK --save-mark
-I PREROUTING -p udp -j CONNMARK --restore-mark
COMMIT
END
"""
# WireGuard's socket: its packets carry the VPN's mark.
MARKED = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 51820)
    sock.settimeout(3)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    for _ in range(3):
        sock.send(b"once\\n")
        print(sock.recv(200).decode().split()[-1])
"""


@pytest.mark.parametrize(("backend", "first", "local"), [("nft", "vpn", "main"), ("legacy", "lsmpy", "balance")])
def test_a_vpn_whose_mark_lies_in_our_bits_lives_on(tmp_path: Path, backend: str, first: str, local: str) -> None:
    """wg-quick's 0xca6c has bits of 0xff00: its packets are not taken for ours, nor given a mark of ours."""
    options = f'{OWN}\nlocal_traffic = "{local}"'
    with rig(tmp_path, configuration(router=options, backend=backend), "ISP2") as router:
        if first == "lsmpy":
            router.rebuild()
        router.shell(WG_QUICK.format(backend=backend))
        router.rebuild()
        left = theirs(router)
        assert len(left) == 3
        for _ in range(2):
            said = router.lab.run(ROUTER, sys.executable, "-c", MARKED, str(router.lab.server[4]), str(PORT))
            # Balanced or not: a VPN is none of those that are marked, and goes by the default of whoever has one.
            assert said.split() == [source("ISP2" if local == "main" else "ISP1", 4)] * 3
            router.rebuild()
        assert theirs(router) == left
        assert router.foreign() == 0
        if first == "vpn":
            shared_out(router)
        assert router.reconfig("--clear").status == 0
        assert "not from all fwmark 0xca6c lookup 51820" in router.shell("ip rule\n")
        assert theirs(router) == left


# Somebody who marks what comes from a LAN, for a queue, and whose mark rests in the connection.
MARKING = """*mangle
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000
-A PREROUTING -i eth0 -j MARK --set-xmark 0x80000/0xff0000
-A FORWARD -m comment --comment all
-A FORWARD -m mark --mark 0x80000/0xff0000 -m comment --comment marked
-A FORWARD -m connmark --mark 0x80000/0xff0000 -m comment --comment resting
-A POSTROUTING -m mark --mark 0x80000/0xff0000 -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
-A POSTROUTING -m connmark --mark 0x80000/0xff0000 -m comment --comment saved
COMMIT
"""


def counted(router: Rig, backend: str) -> dict[str, int]:
    """How many packets each of these rules has met, by its comment."""
    saved = router.shell(f"iptables-{backend}-save -c -t mangle\n")
    return {m[2]: int(m[1]) for m in re.finditer(r"\[(\d+):.*--comment (\w+)", saved)}


@pytest.mark.parametrize(("backend", "balance"), [("nft", "hash"), ("legacy", "nth")])
def test_marks_of_others_survive_in_packets_and_connections(tmp_path: Path, backend: str, balance: str) -> None:
    with rig(tmp_path, configuration(router=f'{OWN}\nbalance = "{balance}"', backend=backend)) as router:
        for step in ("theirs first", "ours first"):
            router.shell(f"iptables-{backend} -t mangle -F PREROUTING\n")
            if step == "ours first":
                router.shell(f"iptables-{backend} -t mangle -F\n")
                router.rebuild()
            router.shell(f"iptables-{backend}-restore --noflush <<'END'\n{MARKING}END\n")
            router.rebuild()
            flows = router.send(8, ("tcp", "udp"))
            assert {flow.isp for flow in flows} <= ISPS if balance == "hash" else {flow.isp for flow in flows} == ISPS
            counts = counted(router, backend)
            assert counts["all"] == counts["marked"] == counts["saved"] > 40, counts
            assert counts["resting"] >= counts["all"] - len(flows)  # all but the first of each
            assert router.foreign() == 0
            # Their counters go on, because their rules are never loaded again.
            for text in ("down", "up"):
                router.say("ISP2", text)
                assert "rebuilt in" in router.rebuild()
            assert counted(router, backend) == counts


# Of somebody who also has rules and routes about our tables.
SOMEBODY = """
for tool in iptables-{backend} ip6tables-{backend}; do
    $tool -P INPUT DROP
    $tool -A INPUT -j ACCEPT
    $tool -N f2b-sshd
    $tool -A f2b-sshd -j RETURN
    $tool -I INPUT -p tcp --dport 22 -j f2b-sshd
    $tool -t nat -A POSTROUTING -o eth9 -m comment --comment "leads to -j LSMPY-POSTROUTING" -j MASQUERADE
    $tool -t mangle -N MARK-ISP1
    $tool -t mangle -A MARK-ISP1 -j MARK --set-xmark 0x10000/0xf0000
    $tool -t mangle -A FORWARD -i eth9 -g MARK-ISP1
done
ip rule add pref 30000 from 10.9.9.9 lookup 250
ip route add 10.7.0.0/16 via 1.1.1.9 table 250
echo 1 >/proc/sys/net/ipv4/conf/eth2/rp_filter
"""


def own(backend: str, more: str = "", name: str = "ISP2") -> str:
    return configuration(router=OWN, backend=backend).replace('name = "ISP2"\n', f'name = "{name}"\n{more}')


def unset(dump: list[str]) -> list[str]:
    """Without the settings, which a rebuild changes and `--clear` puts back."""
    return [line for line in dump if not line.startswith("/proc")]


@pytest.mark.parametrize(("backend", "way"), [("nft", "rebuild"), ("legacy", "rebuild"), ("nft", "script")])
def test_what_is_ours_no_more_goes_and_nothing_else(tmp_path: Path, backend: str, way: str) -> None:
    policy = '[[policy]]\nname = "bank"\nto = ["198.51.100.0/28", "192.0.2.0/24"]\nuse = ["ISP1"]\nprotocol = "icmp"\n'
    with rig(tmp_path, own(backend, "clamp_mss = true\n") + policy, "ISP1") as router:
        router.shell(SOMEBODY.format(backend=backend))
        before = router.dump()

        def build() -> list[str]:
            router.rebuild() if way == "rebuild" else router.shell(router.reconfig("--dry-run").out)
            assert router.reconfig("--diff").out == ""
            there = unset(router.dump())
            assert [line for line in there if line in before] == unset(before)
            return there

        there = build()
        assert {"-A FORWARD -j LSMPY-FORWARD", ":LSMPY-P-bank -"} <= {*there}
        # Others put a rule before ours and into ours, and have rules of their own that lead to ours, or ours twice.
        mangle = f"iptables-{backend} -t mangle"
        for rule in ("-A LSMPY-OUTPUT -o eth9 -j RETURN", "-A FORWARD -i eth8 -j LSMPY-FORWARD"):
            router.shell(f"{mangle} {rule}\n")
        for rule in ("PREROUTING -i eth9 -j RETURN", "PREROUTING -j LSMPY-PREROUTING", "INPUT -j LSMPY-OUTPUT"):
            router.shell(f"{mangle} -I {rule}\n")
        assert router.reconfig("--diff").status == 1
        router.configure(own(backend, name="NEW"))
        text = "\n".join(build())
        assert "LSMPY-M-NEW" in text
        for gone in ("ISP2", "bank", "LSMPY-P-", "LSMPY-FORWARD", "LSMPY-OUTPUT -o eth9", "INPUT -j LSMPY"):
            assert gone not in text
        assert "-A PREROUTING -i eth9 -j RETURN\n-A PREROUTING -j LSMPY-PREROUTING\n" in text
        assert text.count("-A PREROUTING -j LSMPY-PREROUTING") == 2, "one of each family"
        shared_out(router)
        router.shell(f"{mangle} -D PREROUTING -i eth9 -j RETURN\n")
        assert router.reconfig("--clear").status == 0
        assert unset(router.dump()) == unset(before)
        if way == "rebuild":  # the script keeps nothing
            assert router.dump() == before


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_rebuild_that_fails_is_undone_beside_others(tmp_path: Path, backend: str) -> None:
    """IPv4's tables are changed already when IPv6's are refused."""
    (tmp_path / "bin").mkdir()
    for name in ("ip6tables-restore", f"ip6tables-{backend}-restore"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho refused >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with rig(tmp_path, own(backend, "clamp_mss = true\n"), "ISP1") as router:
        router.shell(SOMEBODY.format(backend=backend))
        broken = ["env", f"PATH={tmp_path}/bin:{os.environ['PATH']}"]
        for text in (own(backend, "clamp_mss = true\n"), own(backend, name="NEW")):
            router.configure(text)
            before = router.dump()
            result = router.anyhow(*broken, *router.argv())
            assert result.status == 1
            assert "refused. What was already done has been undone" in result.err
            assert router.dump() == before
            router.rebuild()
            assert router.dump() != before


def test_all_meets_the_guard_after_own_and_own_gives_nothing_up(tmp_path: Path) -> None:
    whole = configuration()
    with rig(tmp_path, configuration(router=OWN), "ISP1") as router:
        router.shell(SOMEBODY.format(backend="nft"))
        before = router.dump()
        router.rebuild()
        there = router.dump()
        router.configure(whole)
        refused = router.reconfig()
        assert refused.status == 1
        for part in ("iptables holds", "f2b-sshd", "Nothing was changed", 'flush = "own"'):
            assert part in refused.err
        assert "LSMPY" not in refused.err.replace("leads to -j LSMPY", "")
        assert router.dump() == there
        # What stands was built beside others, so that is how it goes.
        assert "others' rules are as they were" in router.rebuild("--clear")
        assert router.dump() == before
        router.configure(configuration(router=OWN))
        router.rebuild()
        router.configure(whole)
        router.rebuild("--replace")
        assert "f2b-sshd" not in "".join(router.dump())
        saved = (router.kept / "before.v4").read_text()
        assert "f2b-sshd" in saved
        assert ":LSMPY" not in saved
        # Back again: others' rules that have come since stay, and are not given up with those that were replaced.
        router.configure(configuration(router=OWN))
        router.rebuild()
        router.shell(SOMEBODY.format(backend="nft").partition("ip rule")[0])
        router.rebuild()
        router.configure(whole)
        assert router.reconfig().status == 1
        router.configure(configuration(router=OWN))
        now = theirs(router)
        said = router.rebuild("--clear")
        assert f"is still in {router.kept}/before.v4 and {router.kept}/before.v6" in said
        assert theirs(router) == now
        settings = [line for line in before if line.startswith("/proc")]
        assert [line for line in router.dump() if line.startswith("/proc")] == settings


def test_a_table_that_only_nft_can_read_is_named(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(router=OWN), server=False) as router:
        router.shell("nft add table ip mangle\nnft add set ip mangle s '{ type ipv4_addr; }'\n")
        router.shell("nft add chain ip mangle c\nnft add rule ip mangle c ip daddr @s meta mark set ct mark\n")
        before = router.shell("nft list ruleset\n")
        result = router.reconfig()
        assert result.status == 1
        assert "iptables-save cannot read the table mangle" in result.err
        assert "Nothing was changed" in result.err
        assert router.shell("nft list ruleset\n") == before


# Of somebody who keeps conntrack from the ports that a set names.
NFT_RAW = """
add table {family} raw
add set {family} raw untracked {{ type inet_service; }}
add chain {family} raw PREROUTING {{ type filter hook prerouting priority raw; }}
add rule {family} raw PREROUTING udp dport @untracked notrack
"""


@pytest.mark.parametrize("options", [OWN, ""])
def test_a_table_that_only_nft_can_read_does_no_harm_where_we_have_nothing(tmp_path: Path, options: str) -> None:
    with rig(tmp_path, configuration(router=options)) as router:
        for family in ("ip", "ip6"):
            router.shell(f"nft -f - <<'END'\n{NFT_RAW.format(family=family)}END\n")
        raw = "nft list table ip raw\nnft list table ip6 raw\n"
        before = router.shell(raw)
        router.rebuild()
        assert router.idle()
        shared_out(router)
        router.rebuild("--clear")
        assert router.shell(raw) == before
        stateless = configuration(router=f'{options}\nbalance = "hash"\nmark_mask = 0xffffffff', ipv6="npt-stateless")
        router.configure(stateless)
        result = router.reconfig()
        assert result.status == 1
        assert "cannot read the table raw" in result.err


@pytest.mark.parametrize(("backend", "other"), [("nft", "legacy"), ("legacy", "nft")])
def test_others_may_use_the_other_iptables(tmp_path: Path, backend: str, other: str) -> None:
    with rig(tmp_path, own(backend)) as router:
        router.shell(f"iptables-{other} -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n")
        left = theirs(router)
        router.rebuild()
        assert theirs(router) == left
        shared_out(router)
        # But nobody shall be marked and translated by us twice.
        router.configure(own(other))
        result = router.reconfig()
        assert result.status == 1
        assert f"iptables is {other} here, but iptables-{backend} holds" in result.err
        assert f'Remove them (lsmpy-reconfig --clear while iptables = "{backend}")' in result.err
        router.configure(own(backend))
        router.rebuild("--clear")
        router.configure(own(other))
        router.rebuild()
        shared_out(router)


@pytest.mark.parametrize("options", [OWN, ""])
def test_others_may_give_another_of_an_isps_addresses(tmp_path: Path, options: str) -> None:
    """The administrator's one for a server, or Docker's masquerading where the kernel has another one first."""
    (tmp_path / "v4").write_text("*nat\n-A POSTROUTING -s 192.168.1.0/24 -o eth2 -j SNAT --to-source 1.1.1.5\nCOMMIT\n")
    more = "" if options else f'[rules]\nipv4 = ["{tmp_path}/v4"]\n'
    text = configuration(router=options, more=more).replace('"1.1.1.1/24", ', '"1.1.1.1/24", "1.1.1.5/24", ')
    with rig(tmp_path, text) as router:
        if options:
            router.shell(f"iptables-restore <{tmp_path}/v4\n")
        router.rebuild()
        said = router.talk(lan_node("dev"), [Talk(str(router.lab.server[4]), "tcp")] * 8)
        assert {answer.split()[-1] for answer in said} == {"1.1.1.5", "2.2.2.1"}
        assert router.foreign() == 0
