"""What a rebuild refuses to throw away, what it gives back, and what it cannot do (contract, section 3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmpy.model import FAMILIES
from tests.lab.router_kit import Rig, configuration, rig

pytestmark = pytest.mark.lab

DOCKER = """*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
"""
FIREWALLD = """*filter
:INPUT DROP [0:0]
:INPUT_direct - [0:0]
:INPUT_ZONES - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j INPUT_direct
-A INPUT -j INPUT_ZONES
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A INPUT_ZONES -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
*mangle
:PREROUTING_direct - [0:0]
-A PREROUTING -j PREROUTING_direct
COMMIT
"""
FOREIGN = {"Docker": (DOCKER, "MASQUERADE"), "firewalld": (FIREWALLD, "-j INPUT_ZONES")}
ROUTING = """
ip route add 10.7.0.0/16 via 1.1.1.9 table 250
ip rule add pref 30000 fwmark 1 lookup 250
ip -6 rule add pref 30000 fwmark 1 lookup 250
echo 1 >/proc/sys/net/ipv4/conf/eth2/rp_filter
"""


def load(router: Rig, backend: str, text: str, family: int = 4) -> None:
    tool = "iptables" if family == 4 else "ip6tables"
    router.shell(f"{tool}-{backend}-restore <<'END'\n{text}END\n")


@pytest.mark.parametrize("backend", ["nft", "legacy"])
@pytest.mark.parametrize("whose", FOREIGN)
def test_the_guard_saves_and_clear_gives_back(tmp_path: Path, whose: str, backend: str) -> None:
    text, word = FOREIGN[whose]
    with rig(tmp_path, configuration(backend=backend), "ISP1") as router:
        load(router, backend, text)
        router.shell(ROUTING)
        before = router.dump()
        result = router.reconfig()
        assert result.status == 1
        for part in ("iptables holds", word, "Nothing was changed", "[rules]", 'flush = "own"', "--replace"):
            assert part in result.err
        assert router.dump() == before
        router.rebuild("--replace")
        assert router.idle()
        assert word not in "\n".join(router.dump())
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1", "ISP2"}
        assert word in (router.kept / "before.v4").read_text()
        assert (router.kept / "before.v6").exists()
        # What was given up once is not asked for again, and what came since is thrown away aloud.
        tool = f"iptables-{backend}"
        router.shell(f"{tool} -t mangle -A PREROUTING -s 10.1.2.3 -j ACCEPT\n")
        assert "-s 10.1.2.3/32 -j ACCEPT" in router.rebuild()
        router.say("ISP2", "down")
        router.rebuild()
        cleared = router.reconfig("--clear")
        assert cleared.status == 0, cleared.err
        assert router.dump() == before
        # Nor after it has been cleared; but what is cleared is guarded as ever.
        assert router.reconfig().status == 1
        assert router.dump() == before


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_policies_stay(tmp_path: Path, backend: str) -> None:
    with rig(tmp_path, configuration(backend=backend), server=False) as router:
        for family in FAMILIES:
            load(router, backend, "*filter\n:INPUT DROP [0:0]\n:OUTPUT DROP [0:0]\nCOMMIT\n", family)
        router.rebuild()
        assert router.dump().count(":INPUT DROP") == router.dump().count(":OUTPUT DROP") == 2
        assert router.idle()
        assert router.reconfig("--clear").status == 0
        assert router.dump().count(":INPUT DROP") == 2


def test_clear_without_anything_kept_takes_out_what_is_ours(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        clean = router.dump()
        router.rebuild()
        for file in router.kept.iterdir():
            file.unlink()
        router.shell("iptables -A FORWARD -s 10.1.2.3 -j ACCEPT\n")
        assert router.reconfig("--clear").status == 0
        settings = [line for line in clean if line.startswith("/proc")]
        left = [line for line in router.dump() if not line.startswith("/proc")]
        assert "-A FORWARD -s 10.1.2.3/32 -j ACCEPT" in left
        assert [line for line in left if "LSMPY" in line or "MARK" in line or "proto 76" in line] == []
        assert [line for line in left if line[0] not in "*:-"] == [
            line for line in clean if line[0] not in "*:-" and line not in settings
        ]


# -- [rules] ---------------------------------------------------------------------------------------------------------

# In an administrator's words, which are not the kernel's.
RULES = """*filter
:INPUT DROP
:MY-SERVICES -
-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -j MY-SERVICES
-A MY-SERVICES -p tcp --dport 22 -j ACCEPT
-A MY-SERVICES -p {icmp} -j ACCEPT
-A MY-SERVICES -s {net} -p udp --dport 67:68 -j ACCEPT
COMMIT
*mangle
-A PREROUTING -p tcp --dport 25 -j ACCEPT
COMMIT
*raw
-A PREROUTING -p udp --dport 9999 -j NOTRACK
COMMIT
"""


def rules(tmp_path: Path, text: str, text6: str = "") -> str:
    (tmp_path / "v4").write_text(text)
    (tmp_path / "v6").write_text(text6 or text)
    return f'[rules]\nipv4 = ["{tmp_path}/v4"]\nipv6 = ["{tmp_path}/v6"]\n'


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_of_the_user_are_part_of_every_rebuild_whatever_their_spelling(tmp_path: Path, backend: str) -> None:
    text, text6 = RULES.format(icmp="icmp", net="192.168.0.0/16"), RULES.format(icmp="ipv6-icmp", net="fd00::/8")
    with rig(tmp_path, configuration(backend=backend, more=rules(tmp_path, text, text6))) as router:
        router.rebuild()
        for _ in range(2):
            assert router.idle()
        listing = "\n".join(router.dump())
        assert listing.count("-p tcp -m tcp --dport 22 -j ACCEPT") == 2
        assert listing.count(":INPUT DROP") == 2
        # The user's come first, so that they can make exceptions.
        first = next(line for line in router.dump() if line.startswith("-A PREROUTING -p tcp"))
        assert router.dump().index(first) < router.dump().index("-A PREROUTING -j LSMPY-PREROUTING")
        assert {flow.isp for flow in router.send(8, ("tcp", "udp"), FAMILIES)} == {"ISP1", "ISP2"}
        router.say("ISP2", "down")
        assert "up ISP1, down ISP2" in router.rebuild()
        assert router.idle()
        # A rule that the kernel spells otherwise is still compared with the kernel, each time.
        router.shell(f"iptables-{backend} -D MY-SERVICES -p tcp --dport 22 -j ACCEPT\n")
        assert router.reconfig("--diff").status == 1
        router.rebuild()
        assert "\n".join(router.dump()).count("-p tcp -m tcp --dport 22 -j ACCEPT") == 2


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_of_the_user_that_are_there_already_are_known_in_the_kernels_words(tmp_path: Path, backend: str) -> None:
    text, text6 = RULES.format(icmp="icmp", net="192.168.0.0/16"), RULES.format(icmp="ipv6-icmp", net="fd00::/8")
    with rig(tmp_path, configuration(backend=backend, more=rules(tmp_path, text, text6)), server=False) as router:
        for family, loaded in ((4, text), (6, text6)):
            load(router, backend, loaded, family)
        more = f"iptables-{backend} -A INPUT -p tcp --dport 99 -j DROP\n"
        router.shell(more)
        said = router.reconfig()
        assert said.status == 1
        assert "iptables holds 1 rules" in said.err
        assert "--dport 99" in said.err
        router.shell(more.replace("-A", "-D"))
        router.rebuild()
        assert router.idle()


WRONG = {
    "an unknown target": ("*filter\n-A INPUT -j NO-SUCH-CHAIN\nCOMMIT\n", 1, "v4:2: "),
    "what only the kernel refuses": ("*mangle\n# not here\n-A FORWARD -j REJECT\nCOMMIT\n", 1, "v4:3: "),
    "one of several": ("*filter\n-A INPUT -i lo\n[3:4] -A INPUT -m tcp --dport x -j DROP\nCOMMIT\n", 1, "v4:3: "),
    "an unknown match, after nat": (
        "*mangle\n-A FORWARD -m nosuchmatch -j ACCEPT\nCOMMIT\n*raw\n-A OUTPUT -p nonsense -j ACCEPT\nCOMMIT\n",
        1,
        "v4:2: ",
    ),
    "another format": ("iptables -A INPUT -j ACCEPT\n", 2, "v4:1: "),
    "no such chain": ("*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n", 2, "v4:2: the chain NOWHERE is not declared"),
    "one of our chains": ("*mangle\n:LSMPY-M-ISP1 -\nCOMMIT\n", 2, "LSMPY-M-ISP1 is lsmpy's"),
}


@pytest.mark.parametrize(("moment", "backend"), [("first", "legacy"), ("later", "nft")])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_changes_nothing(tmp_path: Path, moment: str, what: str, backend: str) -> None:
    text, status, word = WRONG[what]
    with rig(tmp_path, configuration(backend=backend), "ISP1", server=False) as router:
        if moment == "later":
            router.rebuild()
            router.say("ISP2", "down")
        before = router.dump()
        router.configure(configuration(backend=backend, more=rules(tmp_path, text, "*filter\nCOMMIT\n")))
        result = router.reconfig()
        assert result.status == status, result.err
        assert word in result.err
        assert "Nothing was changed" in result.err or "the router is as it was before" in result.err
        assert router.dump() == before
        assert router.foreign() == 0


def test_a_missing_rules_file_changes_nothing(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        before = router.dump()
        router.configure(configuration(more='[rules]\nipv4 = ["/nowhere/rules"]\n'))
        result = router.reconfig()
        assert result.status == 2
        assert "/nowhere/rules" in result.err
        assert router.dump() == before


def test_nothing_is_cleared_that_a_watcher_would_rebuild_at_once(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        with router.watching(), router.watching():
            before = router.dump()
            result = router.reconfig("--clear")
            assert result.status == 1
            assert "Nothing was changed. Stop it first: systemctl stop lsmpy-reconfig" in result.err
            assert router.dump() == before
        assert router.reconfig("--clear").status == 0
        assert router.dump() != before


# -- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("table", ["nat", "mangle"])
@pytest.mark.parametrize(("backend", "other"), [("nft", "legacy"), ("legacy", "nft")])
def test_the_other_backend_with_rules_of_its_own_is_refused(
    tmp_path: Path, backend: str, other: str, table: str, family: int
) -> None:
    with rig(tmp_path, configuration(backend=backend), server=False) as router:
        tool = "iptables" if family == 4 else "ip6tables"
        router.shell(f"{tool}-{other} -t {table} -A POSTROUTING -o eth2 -j ACCEPT\n")
        before = router.dump()
        for option in ([], ["--replace"]):
            result = router.reconfig(*option)
            assert result.status == 1
            assert f"{tool}-{other} holds 1 rules in {table}" in result.err
            assert "Nothing was changed" in result.err
            assert router.dump() == before
        router.shell(f"{tool}-{other} -t {table} -F\n")
        router.rebuild()


@pytest.mark.parametrize(
    "drop",
    [
        ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"),
        ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
    ],
)
def test_without_the_privilege_nothing_is_changed(tmp_path: Path, drop: tuple[str, ...]) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        before = router.dump()
        for option in ([], ["--watch"], ["--diff"], ["--clear"]):
            result = router.anyhow(*drop, *router.argv(*option))
            assert result.status in ((1, 2) if option == ["--diff"] else (1,))
            assert "needs root (CAP_NET_ADMIN). Nothing was changed" in result.err
        script = router.anyhow(*drop, *router.argv("--dry-run"))
        assert script.status == 0, script.err
        assert router.dump() == before


@pytest.mark.parametrize(("family", "key"), [(4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")])
def test_a_router_that_forwards_nothing_is_told_so(tmp_path: Path, family: int, key: str) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        router.shell(f"sysctl -q -w {key}=0\n")
        assert f"{key} is 0: nothing of IPv{family} is forwarded; set it to 1 with sysctl" in router.rebuild()
        router.shell(f"sysctl -q -w {key}=1\n")
        assert "forwarded" not in router.rebuild()


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_what_could_not_be_undone_is_told(tmp_path: Path, backend: str) -> None:
    """iptables-restore of one family takes the first text, and nothing after that."""
    with rig(tmp_path, configuration(backend=backend), server=False) as router:
        router.rebuild()
        before = router.dump()
        real = 'PATH=${PATH#*:}\nexec "${0##*/}" "$@"\n'
        texts = {
            "ip6tables": "echo 'no more of that' >&2\nexit 4\n",
            "iptables": f"test -e {tmp_path}/once && {{ echo 'nor of this' >&2; exit 4; }}\ntouch {tmp_path}/once\n",
        }
        for tool, text in texts.items():
            for program in (tmp_path / f"{tool}-restore", tmp_path / f"{tool}-{backend}-restore"):
                program.write_text(f'#!/bin/sh\nif [ "$1" != --version ]; then\n{text}fi\n{real}')
                program.chmod(0o755)
        router.say("ISP2", "down")
        result = router.anyhow("sh", "-c", f'PATH={tmp_path}:$PATH exec "$@"', "sh", *router.argv())
        assert result.status == 1
        assert "no more of that. Putting the former state back failed too" in result.err
        assert "nor of this" in result.err
        assert result.err.rstrip().endswith("Otherwise than before stand: the table mangle of IPv4")
        assert router.dump() != before
        router.rebuild()
        router.say("ISP2", "up")
        router.rebuild()
        assert router.dump() == before


def test_without_iptables_nothing_is_changed(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        before = router.dump()
        hide = 'mount -t tmpfs none /usr/sbin && exec "$@"'
        result = router.anyhow("unshare", "--mount", "sh", "-c", hide, "sh", *router.argv())
        assert result.status == 1
        assert "iptables is not installed" in result.err
        assert "Nothing was changed" in result.err
        assert router.dump() == before


def test_without_a_state_directory_nothing_is_changed(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        before = router.dump()
        router.states.rmdir()
        for option in ([], ["--watch"], ["--diff"], ["--dry-run"]):
            result = router.reconfig(*option)
            assert result.status in ((1, 2) if option == ["--diff"] else (1,))
            assert f"the state directory {router.states} does not exist" in result.err
        assert router.dump() == before


@pytest.mark.parametrize("text", ["", "\n", "\x00\x01\xfe", "UP", "down\ndown", "up now", "long_down", "x" * 9000])
def test_a_strange_state_file_is_down_and_breaks_nothing(tmp_path: Path, text: str) -> None:
    with rig(tmp_path, configuration()) as router:
        (router.states / "ISP2_state").write_text(text, encoding="latin-1")
        says = router.rebuild()
        assert "up ISP1, down ISP2" in says
        assert ("its state file says" in says) or text == "long_down"
        assert {flow.isp for flow in router.send(4)} == {"ISP1"}
