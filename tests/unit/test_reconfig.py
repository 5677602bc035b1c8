"""lsmpy-reconfig from the outside, without root and without a kernel: what it prints, and its exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lsmpy import apply, command, config, image, kernel, plan, reconfig, youth
from lsmpy.apply import Outcome
from lsmpy.command import CommandError
from lsmpy.guard import GuardError
from lsmpy.kernel import KernelError
from lsmpy.routing import Link
from tests.conftest import isps_of

LAN = "[[lan]]\nname = 'office'\ninterface = 'lan0'\naddress = ['192.168.1.1/24']\n"
ELSEWHERE = {"lo": Link(True, True, frozenset({"127.0.0.1"}))}
DONE = plan.Plan((), (), (plan.Verdict("I1", True), plan.Verdict("I2", False, "forced")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    path = tmp_path / "lsmpy.toml"
    path.write_text(f"state_dir = '{tmp_path / 'run'}'\n" + isps_of(2) + LAN)
    return path


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine than the router: its interfaces are not here, and nothing may be started or written."""

    def refuse(*words: object, **_: object) -> None:
        raise AssertionError(f"this would touch the machine: {words}")

    monkeypatch.setattr(image, "read_links", lambda: dict(ELSEWHERE))
    monkeypatch.setattr(image, "read", refuse)
    for name in ("add", "load", "drop", "forget", "write_sysctl"):
        monkeypatch.setattr(kernel, name, refuse)
    monkeypatch.setattr(command, "start", refuse)
    monkeypatch.setattr(youth, "PATH", tmp_path / "first")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of the tests' own process


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in directory.rglob("*") if each.is_file()}


# -- what is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--diff"], ["--clear"], ["--watch"], ["--replace"]])
def test_a_wrong_configuration_is_told_whole_and_ends_with_2(
    path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text("colour = 1\n" + isps_of(1) + "mark = 'x'\n")
    assert reconfig.main(["-c", str(path), *flags]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"lsmpy-reconfig: error: {path}:1: colour: there is no such key" in said.err
    assert f"\n{path}:8: isp.mark: expected a whole number from 1" in said.err


def test_a_missing_configuration_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reconfig.main(["-c", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: cannot read the configuration: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--watch", "--dry-run"], ["--colour"], ["extra"]])
def test_a_wrong_command_line_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        reconfig.main(words)
    assert caught.value.code == 2


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--watch"]])
def test_a_missing_state_directory_ends_with_1(
    path: Path, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "require_privilege", lambda: None)
    missing = path.parent / "missing"
    assert reconfig.main(["-c", str(path), "--state-dir", str(missing), *flags]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"lsmpy-reconfig: error: the state directory {missing} does not exist. Nothing was changed.")


@pytest.mark.parametrize(("flags", "status"), [([], 1), (["--clear"], 1), (["--diff"], 2)])
def test_without_root_it_says_so(
    path: Path, flags: list[str], status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "CapEff:\t0000000000000000\n")
    assert reconfig.main(["-c", str(path), *flags]) == status
    assert "needs root (CAP_NET_ADMIN). Nothing was changed. Run it with sudo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [(GuardError("rules"), 1), (KernelError("no"), 1), (CommandError(["ip"], None, "there is no such program"), 1)],
)
def test_what_could_not_be_done_ends_with_1_and_one_message(
    path: Path, error: Exception, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Outcome:
        raise error

    monkeypatch.setattr(apply, "rebuild", fail)
    assert reconfig.main(["-c", str(path)]) == status
    assert capsys.readouterr().err == f"lsmpy-reconfig: error: {error}\n"


def test_a_missing_iptables_is_told(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "require_privilege", lambda: None)
    monkeypatch.setattr(apply, "LOCK_PATH", path.parent / "lock")
    monkeypatch.setattr(command, "which", lambda _: None)
    assert reconfig.main(["-c", str(path)]) == 1
    assert "iptables is not installed: there is no iptables-restore" in capsys.readouterr().err


def test_a_broken_rules_file_is_told_with_its_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, binary = path.parent / "rules.v4", path.parent / "binary.v4"
    broken.write_text("*filter\n-I INPUT -j DROP\n:OUT-mine - [0:0]\nCOMMIT\n")
    binary.write_bytes(b"\xff\xfe")
    names = [str(broken), str(binary), str(path.parent / "none.v4")]
    path.write_text(path.read_text() + f"[rules]\nipv4 = {names}\n")
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"{broken}:2: '-I' is not of iptables-save's format" in said
    assert f"{binary}:1: cannot be read: " in said
    assert f"{path.parent / 'none.v4'}:1: cannot be read: " in said


def test_our_chains_names_are_not_the_users(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = path.parent / "rules.v4"
    rules.write_text("*mangle\n:LSMPY-M-I1 - [0:0]\nCOMMIT\n")
    path.write_text(path.read_text() + f"[rules]\nipv4 = ['{rules}']\n")
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 2
    assert f"{rules}:1: the chain LSMPY-M-I1 is lsmpy's; give yours another name" in capsys.readouterr().err


# -- what it prints ------------------------------------------------------------------------------------------


def test_a_dry_run_takes_the_interfaces_of_another_machine_for_granted_and_touches_nothing(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path.parent / "run" / "I2_state").write_text("down\n")
    before = files_in(path.parent)
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "build it now: up I1, down I2 (its state file says 'down')\n" in printed
    assert "route replace default via 10.0.1.2 dev wan1 table 250" in printed
    assert "-A LSMPY-C-office -g LSMPY-M-I1\n" in printed
    assert files_in(path.parent) == before


def test_a_dry_run_on_another_machine_does_not_take_its_lan_for_the_routers(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many a machine has an eth0; none but the router has the ISPs' interfaces."""
    lan = config.load(path).lans[0].interface
    monkeypatch.setattr(image, "read_links", lambda: {lan: Link(True, True, frozenset()), **ELSEWHERE})
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 0
    assert "route replace default via 10.0.1.2 dev wan1 table 250" in capsys.readouterr().out


def test_a_dry_run_on_the_router_sees_what_is_missing_there(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"wan2": Link(True, True, frozenset({"10.0.2.1", "2001:db8:2::1"})), **ELSEWHERE}
    monkeypatch.setattr(image, "read_links", lambda: here)
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 0
    assert "up I2, down I1 (there is no interface wan1)" in capsys.readouterr().out


def test_a_dry_run_holds_the_users_rules(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = path.parent / "rules.v4"
    rules.write_text("*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    path.write_text(path.read_text() + f"[rules]\nipv4 = ['{rules}']\n")
    assert reconfig.main(["-c", str(path), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert ":INPUT DROP [0:0]\n:FORWARD KEEP [0:0]\n:OUTPUT KEEP [0:0]\n" in printed
    assert "\n-A INPUT -i lo -j ACCEPT\n" in printed


def test_the_state_directory_of_the_command_line_wins(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = path.parent / "other"
    other.mkdir()
    (other / "I1_force").write_text("down\n")
    assert reconfig.main(["-c", str(path), "--dry-run", "--state-dir", str(other)]) == 0
    assert "up I2, down I1 (forced)" in capsys.readouterr().out


def test_as_a_program_without_root_a_dry_run_prints_a_script(path: Path) -> None:
    # Nobody's rights: the whole program, its imports included, as the contract promises it.
    argv = [sys.executable, "-m", "lsmpy.reconfig", "-c", str(path), "--dry-run"]
    if os.geteuid() == 0:
        argv = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *argv]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("#!/bin/sh\n")
    assert done.stderr == ""


@pytest.mark.parametrize(("text", "status"), [("", 0), ("--- kernel\n+++ rebuild\n", 1)])
def test_a_diff_ends_as_diff_does(
    path: Path, text: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply, "difference", lambda *_: text)
    assert reconfig.main(["-c", str(path), "--diff"]) == status
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("replace", [False, True])
def test_a_rebuild_is_one_and_told_in_one_line(
    path: Path, replace: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rebuild(*words: object) -> Outcome:
        asked.append(words[1:])
        return Outcome(DONE, True, ("I2: mind this",))

    monkeypatch.setattr(apply, "rebuild", rebuild)
    with caplog.at_level("INFO", "lsmpy"):
        assert reconfig.main(["-c", str(path), *(["--replace"] if replace else [])]) == 0
    assert asked == [(path.parent / "run", replace)]
    first, second = caplog.messages
    assert first == "I2: mind this"
    assert second.startswith("rebuilt in ")
    assert second.endswith(" ms: up I1, down I2 (forced)")


def test_probing_the_gateway_is_warned_of_at_every_start(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(path.read_text().replace("203.0.113.1", "gateway"))
    monkeypatch.setattr(apply, "rebuild", lambda *_: Outcome(DONE, False, ()))
    assert reconfig.main(["-c", str(path)]) == 0
    assert any("the gateway answers while its upstream is dead" in text for text in caplog.messages)
