"""The script of --dry-run: what it holds, that a shell takes it, and what it does with tools that only write down."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from lsmpy import changes, freeing, netfilter, plan, script, state
from lsmpy.model import Router
from lsmpy.netfilter import Chain
from lsmpy.plan import Plan
from tests.conftest import isps_of, router_of

LAN = "[[lan]]\nname = 'office'\ninterface = 'lan0'\naddress = ['192.168.1.1/24', '2001:db8:a1::1/64']\n"


def plan_of(router: Router, users: netfilter.Table | None = None, text: str | None = None) -> Plan:
    states = {isp.name: state.judge(text) for isp in router.isps}
    return plan.build(router, states, None, {4: {users.name: users}} if users else None)


PLANS = {
    "two families": plan_of(router_of(isps_of(3) + LAN)),
    "one family": plan_of(router_of("[router]\nlocal_traffic = 'main'\n" + isps_of(2, "4"))),
    "none up": plan_of(router_of("[router]\nwhen_all_down = 'unreachable'\n" + isps_of(1) + LAN), text="down"),
    "dice and masks": plan_of(router_of("[router]\nbalance = 'random'\nmark_mask = 0xff00\n" + isps_of(2) + LAN)),
    "strange texts": plan_of(router_of(isps_of(2)), text="'; rm -rf / #\n$(reboot) `reboot`\n"),
    "packet by packet": plan_of(
        router_of("[nat]\nipv6 = 'npt-stateless'\n" + isps_of(1) + "prefix = '2001:db8:100::/56'\n" + LAN)
    ),
    "the user's rules": plan_of(
        router_of(isps_of(2)),
        netfilter.table(
            "filter", [Chain("INPUT", "DROP", ('-A INPUT -m comment --comment "it\'s $5 \\"now\\"" -j ACCEPT',))]
        ),
    ),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("beside_others", [False, True])
def test_a_shell_takes_it(name: str, shell: str, beside_others: bool) -> None:
    text = script.render(PLANS[name], beside_others=beside_others)
    subprocess.run([shell, "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("beside_others", [False, True])
def test_it_is_clean(name: str, beside_others: bool) -> None:
    checker = shutil.which("shellcheck") or "true"  # not everybody has it; CI does
    text = script.render(PLANS[name], beside_others=beside_others)
    done = subprocess.run([checker, "-"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_who_is_down_is_freed_at_the_end_and_nobody_else() -> None:
    router = router_of("[router]\nfailback = 'move'\n" + isps_of(3) + "tier = 2\n" + LAN)
    states = {isp.name: state.judge("down" if isp.name == "I2" else "up") for isp in router.isps}
    text = script.render(plan.build(router, states, None), "-legacy", freeing.commands(router))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    checker = shutil.which("shellcheck") or "true"
    done = subprocess.run([checker, "-"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert text.index("was_6=$(ip6tables-legacy-save -t mangle)\n") < text.index("\nload ")
    assert re.findall(r"^free .*", text[text.rindex("\nonly_routes ") :], re.MULTILINE) == [
        f"free \"$was_{family}\" LSMPY-{name} <<'END_OF_INPUT'" for family in (4, 6) for name in ("DOWN I2", "LEFT I3")
    ]
    assert "-A LSMPY-M-I3 -j MARK --set-xmark 0x3/0xffffffff\n" in text[text.index("\nremarked 4 ") :]
    last = ("--reply-dst 2001:db8:3::1", "--mark 0x3/0xffffffff")
    assert text.endswith("".join(f"conntrack -D -f ipv6 {each}\n" for each in last) + "END_OF_INPUT\n")
    assert "conntrack -D -f ipv6 " not in script.render(PLANS["two families"], "", freeing.commands(router))


@pytest.mark.parametrize("name", PLANS)
def test_it_holds_the_whole_text(name: str) -> None:
    made, text = PLANS[name], script.render(PLANS[name])
    for side in made.sides:
        assert changes.add_text(side.routes, side.rules) in text
        for table in side.tables:
            assert f"load {'iptables' if side.family == 4 else 'ip6tables'} {table.name} <<'END_OF_INPUT'\n" in text
            assert all(f"\n{rule}\n" in text for rule in table.rules)
    for key, value in made.sysctls:
        assert f"\necho {value} >/proc/sys/{key} " in text


def test_it_adds_then_loads_then_removes() -> None:
    text = script.render(PLANS["two families"])
    places = [text.index(f"\n{step} ") for step in ("add -4", "add -6", "load iptables nat", "load iptables mangle")]
    places += [text.index("\nload ip6tables mangle "), text.index("\nonly_rules -4 "), text.index("\nonly_routes -6 ")]
    assert places == sorted(places)


def test_ours_in_raw_goes_unless_packets_are_translated_one_by_one() -> None:
    """Whoever was before, without asking for a table that is not there: legacy iptables would make it."""
    taking_out = "ip6tables-save | sed -n '/^[*]raw/,/^COMMIT/p' | grep -q '^:LSMPY-' || load ip6tables raw <<"
    assert taking_out in script.render(PLANS["two families"])
    assert "raw" not in script.render(PLANS["one family"])
    assert taking_out not in (text := script.render(PLANS["packet by packet"]))
    assert "\nload ip6tables raw <<" in text


def test_policies_that_nobody_sets_are_kept_and_others_said() -> None:
    assert ":INPUT DROP [0:0]\n:FORWARD KEEP [0:0]" in script.render(PLANS["the user's rules"])
    assert " ACCEPT [0:0]" not in script.render(PLANS["two families"])


def test_a_strange_state_stays_in_one_comment() -> None:
    lines = script.render(PLANS["strange texts"]).splitlines()
    assert all(line.startswith("# ") for line in lines if "rm -rf" in line or "reboot" in line)


def test_it_is_the_same_for_the_same_plan() -> None:
    assert script.render(PLANS["two families"]) == script.render(plan_of(router_of(isps_of(3) + LAN)))


# -- run, with tools that only write down --------------------------------------------------------------------


def run(tmp_path: Path, made: Plan, rules: str = "", routes: str = "", beside_others: bool = False) -> str:
    """Run the script with an `ip` and an `iptables` that know this live kernel; returns what they were told."""
    told = tmp_path / "told"
    tools = {
        "ip": f'case "$*" in *"rule show"*) cat <<"X"\n{rules}X\n;; *"route show"*) cat <<"X"\n{routes}X\n'
        f';; *) echo "== ip $*" >>{told}; cat >>{told} ;; esac',
        "iptables-save": 'echo ":INPUT DROP [5:6]"; echo ":FORWARD ACCEPT [0:0]"; echo ":MINE - [0:0]"',
        "iptables-restore": f'echo "== iptables-restore $*" >>{told}; cat >>{told}',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    # Without the settings: nothing here may touch the machine.
    text = script.render(msgspec.structs.replace(made, sysctls=()), beside_others=beside_others)
    assert "/proc/sys" not in text
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh"], input=text, text=True, check=True, env=environment, capture_output=True)
    return told.read_text()


def test_run_it_loads_the_plan_and_keeps_the_policies(tmp_path: Path) -> None:
    made = PLANS["one family"]
    told = run(tmp_path, made)
    (side,) = made.sides
    assert changes.add_text(side.routes, side.rules) in told
    assert "KEEP" not in told
    assert "*filter\n:INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n" in told
    for table in side.tables:
        assert all(f"\n{rule}\n" in told for rule in table.rules)


def test_run_twice_it_removes_nothing(tmp_path: Path) -> None:
    made = PLANS["one family"]
    (side,) = made.sides
    rules = "0:\tfrom all lookup 255\n"
    for rule in side.rules:
        selector = rule.selector if rule.selector.startswith("from") else f"from all {rule.selector}".strip()
        selector += " [detached]" if selector == "from all oif wan1" else ""  # while the interface is away
        suppress = " suppress_prefixlength 0" if rule.suppress_default else ""
        rules += f"{rule.priority}:\t{selector} lookup {rule.table}{suppress} proto 76\n"
    routes = "default via 10.0.1.2 dev wan1 proto 76 \n7 default proto 76 metric 4294967295 \n"
    assert "del" not in run(tmp_path, made, rules, routes)


def test_run_it_removes_what_is_stale_and_nothing_of_others(tmp_path: Path) -> None:
    rules = (
        "0:\tfrom all lookup 255\n"
        "100:\tfrom 10.9.9.9 lookup 77\n"
        "20002:\tfrom all fwmark 0x9 lookup 77 proto 76\n"
        "32000:\tfrom all fwmark 0x1 lookup 250\n"
        "32766:\tfrom all lookup 254\n"
    )
    told = run(
        tmp_path, PLANS["one family"], rules, "192.0.2.0/24 dev old proto 3 linkdown\ndefault via 10.0.1.2 dev wan1\n"
    )
    gone = [line for line in told.splitlines() if " del " in line]
    assert gone == [
        "rule del pref 20002 from all fwmark 0x9 lookup 77 proto 76",
        "rule del pref 32000 from all fwmark 0x1 lookup 250",
        "route del 192.0.2.0/24 dev old proto 3 table 249",
        "route del 192.0.2.0/24 dev old proto 3 table 250",
    ]


def test_run_beside_others_it_fills_our_chains_and_declares_no_other(tmp_path: Path) -> None:
    made = PLANS["one family"]
    told = run(tmp_path, made, "100:\tfrom all fwmark 0x9 lookup 250\n", beside_others=True)
    (side,) = made.sides
    declared = {line.split()[0][1:] for line in told.splitlines() if line.startswith(":")}
    assert declared == {c.name for table in side.tables for c in table.chains if c.name not in table.policies()}
    for table in side.tables:
        for chain in table.chains:
            first = "-I" if chain.name in table.policies() and table.name != "nat" else "-A"
            assert all(f"\n{first}{rule[2:]}\n" in told for rule in chain.rules)
    assert told.count("== iptables-restore -w --noflush\n") == len(side.tables)
    assert " del " not in told
