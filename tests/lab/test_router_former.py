"""What was there before us: nothing of it is lost, whatever the configuration, the machine or the disk goes through."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lsmpy import youth
from lsmpy.lab import PORT
from tests.lab.router_kit import Rig, configuration, rig

pytestmark = pytest.mark.lab

CLOSED = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 23 -j DROP\nCOMMIT\n"
UNTRACKED = "*raw\n-A PREROUTING -p udp -m udp --dport 9999 -j CT --notrack\nCOMMIT\n"
# As the article's script leaves them, but for what it marks with.
ARTICLE = """*filter
:IN-ISP1 - [0:0]
-A INPUT -i eth2 -j IN-ISP1
-A IN-ISP1 -p tcp -m tcp --dport 23 -j DROP
COMMIT
*mangle
:MARK-ISP1 - [0:0]
:MARK-ISP2 - [0:0]
-A PREROUTING -i eth0 -m statistic --mode nth --every 2 --packet 0 -j MARK-ISP1
-A PREROUTING -i eth0 -m statistic --mode nth --every 2 --packet 1 -j MARK-ISP2
-A MARK-ISP1 -j MARK --set-xmark 0x1/0xffffffff
-A MARK-ISP2 -j MARK --set-xmark 0x2/0xffffffff
COMMIT
"""
BY_PORT = "ip rule add pref 1000 ipproto tcp dport 443 lookup 250\n"


def load(router: Rig, text: str, tool: str = "iptables") -> None:
    router.shell(f"{tool}-restore <<'END'\n{text}END\n")


def only_ipv4(text: str) -> str:
    return re.sub(r""", ["'][0-9a-f]+:[^"']*["']""", "", text)


def ours(lines: list[str]) -> list[str]:
    return [line for line in lines if "LSMPY" in line or "proto 76" in line]


def reboot(router: Rig) -> None:
    """What the kernel forgets."""
    router.shell(
        "for tool in iptables ip6tables; do $tool-restore </dev/null; for table in filter nat mangle raw; do "
        "$tool -t $table -F; $tool -t $table -X; done; done\n"
    )
    for family in (4, 6):
        for line in router.shell(f"ip -N -{family} rule show\n").splitlines():
            if "proto 76" in line:
                router.shell(f"ip -{family} rule del pref {line.split(':')[0]} protocol 76\n")
        router.shell(f"ip -{family} route flush table all proto 76\n")
    youth.PATH.unlink()


def test_a_family_that_is_configured_later_is_guarded_and_kept_too(tmp_path: Path) -> None:
    both = configuration()
    with rig(tmp_path, both, "ISP1", server=False) as router:
        load(router, CLOSED, "ip6tables")
        before = router.dump()
        router.configure(only_ipv4(both))
        router.rebuild()
        built = router.dump()
        assert "-A INPUT -p tcp -m tcp --dport 23 -j DROP" in built
        router.configure(both)
        said = router.reconfig()
        assert said.status == 1
        assert "ip6tables holds 1 rules that a rebuild would throw away" in said.err
        assert router.dump() == built
        router.rebuild("--replace")
        assert "-A INPUT -p tcp -m tcp --dport 23 -j DROP" not in router.dump()
        router.rebuild()
        assert router.reconfig("--clear").status == 0
        assert router.dump() == before


def test_a_table_that_is_configured_later_is_guarded_and_kept_and_goes_again(tmp_path: Path) -> None:
    (tmp_path / "v4").write_text(UNTRACKED.replace("9999", "7"))
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        load(router, UNTRACKED)
        before = router.dump()
        router.rebuild()
        router.configure(configuration(more=f'[rules]\nipv4 = ["{tmp_path}/v4"]\n'))
        said = router.reconfig()
        assert said.status == 1
        assert "-t raw -A PREROUTING -p udp -m udp --dport 9999" in said.err
        router.rebuild("--replace")
        listing = "\n".join(router.dump())
        assert "--dport 7 " in listing
        assert "--dport 9999" not in listing
        router.configure(configuration())
        assert "--dport 9999" in router.reconfig("--diff").out
        assert "IPv4 raw is configured no more" in router.rebuild()
        listing = "\n".join(router.dump())
        assert "--dport 7 " not in listing
        assert "--dport 9999" in listing
        assert router.idle()
        assert router.reconfig("--clear").status == 0
        assert router.dump() == before


@pytest.mark.parametrize("flush", ["all", "own"])
def test_a_family_that_is_configured_no_more_is_as_it_was(tmp_path: Path, flush: str) -> None:
    both = configuration(router=f'flush = "{flush}"')
    with rig(tmp_path, both, "ISP1", server=False) as router:
        load(router, CLOSED, "ip6tables")
        six = "ip6tables-save | grep '^-A'; ip -6 rule show; ip -6 route show table all proto 76; true\n"
        before, former = router.dump(), router.shell(six)
        router.rebuild(*(("--replace",) if flush == "all" else ()))
        assert router.shell(six) != former
        router.configure(only_ipv4(both))
        assert router.reconfig("--diff").status == 1
        assert "IPv6 is configured no more" in router.rebuild()
        assert ours(router.shell(six).splitlines()) == []
        assert router.shell(six) == former
        assert router.idle()
        # And what only the memory knows of is cleared as well.
        router.configure(both)
        router.rebuild(*(("--replace",) if flush == "all" else ()))
        router.configure(only_ipv4(both))
        assert router.reconfig("--clear").status == 0
        assert ours(router.dump()) == []
        assert [line for line in router.dump() if line[0] not in "*:"] == [x for x in before if x[0] not in "*:"]


@pytest.mark.parametrize("way", ["rebuild", "script"])
def test_a_rule_that_says_more_than_we_know_is_left_alone(tmp_path: Path, way: str) -> None:
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        router.shell(BY_PORT)
        router.shell("ip rule add pref 30000 from 10.9.9.9 lookup 250\n")  # one that we do know goes
        before = router.dump()
        router.rebuild() if way == "rebuild" else router.shell(router.reconfig("--dry-run").out)
        assert router.idle()
        rules = router.shell("ip rule show\n")
        assert "ipproto tcp dport 443 lookup 250" in rules
        assert "10.9.9.9" not in rules
        assert router.reconfig("--clear").status == 0
        if way == "rebuild":  # the script keeps nothing
            assert router.dump() == before


def test_a_route_that_could_not_be_put_back_is_not_taken_away(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        router.shell("ip route add 10.7.0.0/16 via 1.1.1.9 table 250 mtu 1400\n")
        before = router.dump()
        said = router.reconfig()
        assert said.status == 1
        assert "10.7.0.0/16 in table 250 of IPv4" in said.err
        assert router.dump() == before
        router.rebuild("--replace")
        assert "mtu 1400" not in router.shell("ip route show table 250\n")


def test_chains_of_the_articles_names_are_others(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1") as router:
        load(router, ARTICLE)
        before = router.dump()
        said = router.reconfig()
        assert said.status == 1
        assert "iptables holds 6 rules" in said.err
        router.rebuild("--replace")
        assert "MARK-ISP1" not in "\n".join(line.split("LSMPY")[0] for line in router.dump())
        assert router.reconfig("--clear").status == 0
        assert router.dump() == before
        # Beside them ours decide, whoever marked before.
        router.configure(configuration(router='flush = "own"'))
        router.say("ISP1", "down")
        router.rebuild()
        assert set(ARTICLE.splitlines()[2:4]) <= set(router.dump())


def test_rules_given_up_once_are_kept_over_starts_of_the_machine(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        load(router, CLOSED)
        before = router.dump()
        router.rebuild("--replace")
        reboot(router)  # and whoever makes those rules comes after us
        router.rebuild()
        reboot(router)  # or before us
        load(router, CLOSED)
        router.rebuild()
        assert router.reconfig("--clear").status == 0
        assert [line for line in router.dump() if line.startswith("-A")] == [x for x in before if x.startswith("-A")]


def test_settings_of_an_isp_that_comes_later_are_put_back_too(tmp_path: Path) -> None:
    three = configuration((1, 1, 1))
    two = three[: three.index('[[isp]]\nname = "ISP3"')] + three[three.index("[[lan]]") :]
    with rig(tmp_path, three, "ISP1", server=False) as router:
        router.shell("echo 1 >/proc/sys/net/ipv4/conf/eth4/rp_filter\n")
        before = router.dump()
        router.configure(two)
        router.rebuild()
        router.configure(three)
        router.rebuild()
        assert "/proc/sys/net/ipv4/conf/eth4/rp_filter:2" in router.dump()
        assert router.reconfig("--clear").status == 0
        assert router.dump() == before


@pytest.mark.parametrize("content", ["", '{"routes": {"4": [', "[]"])
def test_a_damaged_file_stops_no_rebuild_and_loses_no_rules(tmp_path: Path, content: str) -> None:
    with rig(tmp_path, configuration(), "ISP1", server=False) as router:
        load(router, CLOSED)
        router.rebuild("--replace")
        (router.kept / "before.json").write_text(content)
        router.say("ISP1", "down")
        said = router.rebuild()
        assert "before.json was damaged" in said
        assert "up ISP2, down ISP1" in said
        assert "before.json" not in router.rebuild()
        assert router.reconfig("--clear").status == 0
        assert "-A INPUT -p tcp -m tcp --dport 23 -j DROP" in router.dump()


def test_what_cannot_be_learnt_undoes_nothing(tmp_path: Path) -> None:
    """How the kernel spells a user's rule; say, for want of a disk with space."""
    rules = tmp_path / "v4"
    rules.write_text("*filter\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n")
    with rig(tmp_path, configuration(more=f'[rules]\nipv4 = ["{rules}"]\n'), "ISP1", server=False) as router:
        router.rebuild()
        (router.kept / ".spelling.json.tmp").mkdir()
        rules.write_text("*filter\n-A INPUT -p tcp --dport 2222 -j ACCEPT\nCOMMIT\n")
        router.say("ISP1", "down")
        said = router.rebuild()
        assert f"cannot write {router.kept}/spelling.json: " in said
        assert "up ISP2, down ISP1" in said
        assert "-A INPUT -p tcp -m tcp --dport 2222 -j ACCEPT" in router.dump()


def test_freeing_that_failed_is_tried_again(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), "ISP1") as router:
        router.rebuild()
        router.settle()
        assert {flow.isp for flow in router.send(8)} == {"ISP1", "ISP2"}
        broken = tmp_path / "bin"
        broken.mkdir()
        (broken / "conntrack").write_text("#!/bin/sh\necho 'conntrack v1: it is broken' >&2\nexit 1\n")
        (broken / "conntrack").chmod(0o755)
        router.say("ISP1", "down")
        said = router.anyhow("env", f"PATH={broken}:{os.environ['PATH']}", *router.argv())
        assert said.status == 0
        assert "could not be freed" in said.err
        assert any("dst=1.1.1.1 " in each for each in router.connections().values())
        assert "connections of ISP1 freed" in router.rebuild()
        assert not any("dst=1.1.1.1 " in each for each in router.connections().values())
        assert router.idle()


@pytest.mark.parametrize("way", ["rebuild", "script"])
def test_connections_of_a_mark_that_has_another_meaning_are_freed(tmp_path: Path, way: str) -> None:
    """Without an explicit mark that is an ISP's place in the file, and the first one goes."""
    three = configuration((1, 1, 1))
    less = three[: three.index("[[isp]]")] + three[three.index('[[isp]]\nname = "ISP2"') :]
    with rig(tmp_path, three, "ISP3") as router:
        router.rebuild()
        router.settle()
        assert {flow.isp for flow in router.send(9)} == {"ISP1", "ISP2", "ISP3"}
        assert any(f"dport={PORT}" in each for each in router.connections().values())
        router.configure(less)
        if way == "rebuild":
            assert re.search(r"connections of ISP1, ISP2, ISP3 freed", router.rebuild())
        else:
            router.shell(router.reconfig("--dry-run").out)
        assert not any(f"dport={PORT}" in each for each in router.connections().values())
        assert {flow.isp for flow in router.send(8)} == {"ISP2", "ISP3"}
        assert router.foreign() == 0
