"""`lsmpy rehearse` on the real kernel with the real programs: that it passes what works and finds what does not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lsmpy import cli, command, rehearse
from lsmpy.report import Report
from tests.conftest import SAMPLE, isps_of
from tests.lab.test_lab import LAN, WITHOUT_RIGHTS

# A prober in a hurry: it finds a dead line in a third of a second.
FAST = """
[probe]
interval_ms = 60
timeout_ms = 150
max_successive_pkts_lost = 4
max_packet_loss = 90
min_packet_loss = 80
min_successive_pkts_rcvd = 5
"""
LAN6 = '[[lan]]\nname = "dev"\ninterface = "lan0"\naddress = ["192.168.9.1/24", "2001:db8:aaaa::1/64"]\n'

Rehearsed = Callable[[str], tuple[int, Report, str]]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "_MEASURE_S", 0.8)


@pytest.fixture
def rehearsed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Rehearsed:
    """Rehearses a configuration and returns the status, the facts and the timeline."""

    def run(text: str) -> tuple[int, Report, str]:
        file = tmp_path / "lsmpy.toml"
        file.write_text(text)
        status = cli.main(["rehearse", "--json", "-c", str(file)])
        said = capfd.readouterr()
        return status, msgspec.json.decode(said.out, type=Report), said.err

    return run


def test_two_isps_and_two_families(rehearsed: Rehearsed) -> None:
    status, facts, timeline = rehearsed(FAST + isps_of(2) + LAN6)
    assert (status, facts.ok) == (0, True), timeline
    assert [(trial.isp, trial.fault) for trial in facts.trials] == [
        (isp, fault) for isp in ("I1", "I2") for fault in ("upstream dead", "cable out", "forced by hand")
    ]
    for trial in facts.trials:
        other = "I2" if trial.isp == "I1" else "I1"
        assert trial.during == {trial.isp: 0.0, other: 1.0}
        assert trial.before[other] == pytest.approx(0.5, abs=0.03)
        assert trial.after[other] == pytest.approx(0.5, abs=0.03)
        assert (trial.lost_elsewhere, trial.hurt_elsewhere, trial.foreign) == (0, 0, 0)
        assert trial.detected_s is not None
        assert trial.rebuilt_s is not None
        assert trial.detected_s <= trial.rebuilt_s
        assert trial.back_s is not None
    assert [trial.lost_here > 0 for trial in facts.trials if trial.fault == "upstream dead"] == [True, True]
    assert "fault: cable out" in timeline


def test_hosts_of_one_isps_network_wait_for_it_and_others_go_on(
    rehearsed: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv6 without translation (R9): one LAN has I1's prefix, the other is of no ISP."""
    monkeypatch.setattr(rehearse, "_MEASURE_S", 1.2)  # longer than those who wait are patient
    isps = re.sub(r'name = "I(.)"', r'name = "I\1"\nprefix = "2001:db8:10\1::/48"', isps_of(2, "6"))
    lans = "".join(
        f'[[lan]]\nname = "{name}"\ninterface = "{name}"\naddress = "{address}"\n'
        for name, address in (("lan0", "2001:db8:101:1::1/64"), ("lan1", "2001:db8:aa:1::1/64"))
    )
    status, facts, timeline = rehearsed(FAST + isps + lans)
    assert (status, facts.ok) == (0, True), timeline
    for trial in facts.trials:
        assert trial.before["I1"] == pytest.approx(0.75, abs=0.03)
        assert trial.during == {trial.isp: 0.0, {"I1": "I2", "I2": "I1"}[trial.isp]: 1.0}
        assert trial.foreign == 0
    waiting = {trial.isp: trial.lost_here for trial in facts.trials if trial.fault == "forced by hand"}
    assert (waiting["I1"] > 0, waiting["I2"]) == (True, 0)


def test_flows_that_policies_are_about_are_judged_by_them(
    rehearsed: Rehearsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP prefers I2, UDP may only go by I1 and is refused without it, and IPv6 is I1's alone."""
    monkeypatch.setattr(rehearse, "_MEASURE_S", 1.2)  # longer than those who wait are patient
    isps = isps_of(2).replace("'10.0.2.1/24', '2001:db8:2::1/64'", "'10.0.2.1/24'")
    isps = isps.replace("'10.0.2.2', '2001:db8:2::2'", "'10.0.2.2'")
    policies = [
        'name = "bank"\nto = "198.51.100.0/24"\nuse = "I1"\notherwise = "unreachable"',
        'name = "tcp"\nlan = "dev"\nprotocol = "tcp"\nuse = ["I2", "I1"]',
        'name = "udp"\nprotocol = "udp"\nuse = ["I1"]\notherwise = "unreachable"',
    ]
    status, facts, timeline = rehearsed(FAST + isps + LAN6 + "".join(f"[[policy]]\n{each}\n" for each in policies))
    assert (status, facts.ok) == (0, True), timeline
    for trial in facts.trials:
        assert trial.before["I2"] == pytest.approx(0.25, abs=0.03)  # TCP of IPv4
    refused, moved = (trial for trial in facts.trials if trial.fault == "forced by hand")
    assert (refused.lost_here > 20, moved.lost_here) == (True, 0)
    assert refused.during == {"I1": pytest.approx(0.67, abs=0.03), "I2": pytest.approx(0.33, abs=0.03)}
    assert moved.during == {"I1": 1.0, "I2": 0.0}
    assert "policy bank is not rehearsed" in timeline
    assert "policy tcp decides for dev (IPv4, tcp), dev (IPv6, tcp)" in timeline


def test_a_single_isp_without_lans(rehearsed: Rehearsed) -> None:
    status, facts, timeline = rehearsed(FAST + isps_of(1, "6"))
    assert (status, facts.ok, facts.flows) == (0, True, 0), timeline
    assert [trial.detected_s is not None for trial in facts.trials] == [True, True, False]


def test_checks_by_tcp_and_dns_are_served(rehearsed: Rehearsed) -> None:
    text = re.sub(r"check = .*", 'check = ["tcp://203.0.113.1:443", "dns://203.0.113.9/a.example"]', isps_of(1))
    status, facts, timeline = rehearsed(f"{FAST}{text}quorum = 2\n")
    assert (status, facts.ok) == (0, True), timeline
    assert [trial.detected_s is not None for trial in facts.trials] == [True, True, False]


def test_flows_that_the_router_loses_are_found(rehearsed: Rehearsed, tmp_path: Path) -> None:
    rules = tmp_path / "rules.v4"
    rules.write_text(
        "*raw\n-A PREROUTING -i lan0 -p udp -m statistic --mode nth --every 20 --packet 0 -j DROP\nCOMMIT\n"
    )
    status, facts, _ = rehearsed(f'{FAST}[rules]\nipv4 = ["{rules}"]\n{isps_of(2, "4")}{LAN}')
    assert (status, facts.ok) == (1, False)
    assert all("new flows were lost" in trial.failures[0] for trial in facts.trials)


def test_foreign_sources_are_found(rehearsed: Rehearsed, tmp_path: Path) -> None:
    rules = tmp_path / "rules.v4"
    rules.write_text("*nat\n-A POSTROUTING -o wan2 -p udp -j SNAT --to-source 10.0.1.1\nCOMMIT\n")
    status, facts, _ = rehearsed(f'{FAST}[rules]\nipv4 = ["{rules}"]\n{isps_of(2, "4")}{LAN}')
    assert (status, facts.ok) == (1, False)
    assert sum(trial.foreign for trial in facts.trials if trial.isp == "I1") > 0


def test_programs_of_the_machine_are_not_run(rehearsed: Rehearsed, tmp_path: Path) -> None:
    """They would do in earnest what is only rehearsed."""
    program = tmp_path / "hook"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/done\n")
    program.chmod(0o755)
    status, facts, _ = rehearsed(f'{FAST}[rules]\nafter = ["{program}"]\n{isps_of(1, "4")}{LAN}')
    assert (status, facts.ok) == (0, True)
    assert not (tmp_path / "done").exists()


def test_addresses_that_only_the_router_knows_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lsmpy.toml"
    for key, value in (("address", "auto"), ("gateway", "auto")):
        file.write_text(re.sub(rf"(?m)^{key} = .*", f'{key} = "{value}"', isps_of(1, "4")) + LAN)
        assert cli.main(["rehearse", "-c", str(file)]) == 1
        assert f'I1 has "{value}" for an address or gateway' in capsys.readouterr().err


def test_a_program_that_dies_ends_the_rehearsal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "rules.v4"
    rules.write_text("*filter\n-A FORWARD -j NOSUCHTARGET\nCOMMIT\n")
    file = tmp_path / "lsmpy.toml"
    file.write_text(f'[rules]\nipv4 = ["{rules}"]\n{isps_of(2, "4")}{LAN}')
    assert cli.main(["rehearse", "-c", str(file)]) == 1
    said = capfd.readouterr()
    assert "NOSUCHTARGET" in said.out
    assert "lsmpy-reconfig has died" in said.err


def test_it_needs_no_rights_and_brings_its_own_sandbox(tmp_path: Path) -> None:
    file = tmp_path / "lsmpy.toml"
    file.write_text(FAST + isps_of(1, "4") + LAN)
    inside = 'unset LSMPY_SANDBOX; exec "$0" "$@"'  # as if started from outside
    argv = ["sh", "-c", inside, sys.executable, "-m", "lsmpy.cli", "rehearse", "-c", str(file)]
    said = command.run(*WITHOUT_RIGHTS, *argv, timeout_s=90)
    assert "everything as promised" in said


@pytest.mark.long
@pytest.mark.timeout(180)
def test_the_sample_configuration_in_a_minute_and_a_half(
    long: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rehearse, "_MEASURE_S", 3.0 if long else 0.6)
    assert cli.main(["rehearse", "--json", "-c", str(SAMPLE)]) == 0
    assert msgspec.json.decode(capfd.readouterr().out, type=Report).seconds < 90
