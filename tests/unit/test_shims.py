"""What stands in the place of the article's scripts, and the systemd units."""

from __future__ import annotations

import configparser
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsmpy import state
from tests.lab import as_unit

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
UNITS = sorted((SCRIPTS / "systemd").glob("*.service"))
UNCONFINED = {"lsmpy-lsm", "lsmpy-foolsm"}  # whose scripts may do anything
CONFINED = [path for path in UNITS if path.stem not in UNCONFINED]
CAPABILITIES = {
    "lsmpy-probe": {"CAP_NET_RAW"},
    "lsmpy-probe-rootless": {"CAP_NET_RAW"},
    "lsmpy-reconfig": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
}
WRITES = {"lsmpy-probe": "/run", "lsmpy-probe-rootless": "/run/lsmpy", "lsmpy-reconfig": "/run"}


def program(path: Path, text: str) -> None:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def run(*argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a program did, with these variables in its environment."""
    return subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


# -- lsm_event -----------------------------------------------------------------------------------------------


def event(directory: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the event script as LSM does."""
    return run(SCRIPTS / "lsm_event", *words, LSMPY_STATE_DIR=str(directory), **environment)


@pytest.mark.parametrize(("word", "up"), [("up", True), ("down", False), ("long_down", False)])
def test_event_writes_what_the_router_reads(tmp_path: Path, word: str, up: bool) -> None:
    lsm = [word, "ISP_2-b", "203.0.113.2", "eth3", "root@localhost", *["0"] * 12, "down"]
    assert event(tmp_path, *lsm).returncode == 0
    assert (tmp_path / "ISP_2-b_state").read_text() == f"{word}\n"
    assert state.read(tmp_path, "ISP_2-b") == state.Status(up, word)


def test_event_leaves_one_file_that_all_may_read(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").write_text("up\n")
    assert event(tmp_path, "down", "ISP1").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ISP1_state"]
    assert (tmp_path / "ISP1_state").stat().st_mode & 0o777 == 0o644


def test_event_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "ISP1_state"
    path.write_text("up\n")
    with path.open() as reader:  # who has it open goes on reading the old text: it was not written into
        assert event(tmp_path, "down", "ISP1").returncode == 0
        assert reader.read() == "up\n"
    assert path.read_text() == "down\n"


def test_event_that_cannot_finish_changes_nothing(tmp_path: Path) -> None:
    directory, tools = tmp_path / "state", tmp_path / "tools"
    directory.mkdir()
    (directory / "ISP1_state").write_text("up\n")
    program(tools / "mv", "exit 1")
    result = event(directory, "down", "ISP1", PATH=f"{tools}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert {path.name: path.read_text() for path in directory.iterdir()} == {"ISP1_state": "up\n"}


@pytest.mark.parametrize("name", ["", "../ISP1", "a/b", "..", "a b", "a;b", "ISP1\n", "ÄSP", "*", "$(id)"])
def test_event_refuses_names_that_are_none(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    result = event(directory, "down", name, LC_ALL="C.UTF-8")
    assert result.returncode == 2
    assert "nothing was written" in result.stderr
    assert list(tmp_path.rglob("*")) == [directory]


def test_event_without_a_directory_says_so(tmp_path: Path) -> None:
    result = event(tmp_path / "none", "down", "ISP1")
    assert result.returncode == 1
    assert str(tmp_path / "none") in result.stderr


# -- config_router.sh ----------------------------------------------------------------------------------------

SHOW = 'printf "%s\\n" "$0" "$@"; exit 7'


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A PATH that has nothing but what the shim itself needs."""
    for name in ("dirname", "readlink"):
        program(tmp_path / "bare" / name, f'exec {shutil.which(name)} "$@"')
    return str(tmp_path / "bare")


def shim(copied_to: Path) -> Path:
    """A copy of the shim, as an administrator puts it where the old script was."""
    copied_to.parent.mkdir(parents=True, exist_ok=True)
    copied_to.write_bytes((SCRIPTS / "config_router.sh").read_bytes())
    copied_to.chmod(0o755)
    return copied_to


def test_shim_passes_its_arguments_and_the_status(tmp_path: Path) -> None:
    reconfig = tmp_path / "bin/lsmpy-reconfig"
    program(reconfig, SHOW)
    path = f"{reconfig.parent}:{os.environ['PATH']}"
    result = run(shim(tmp_path / "config_router.sh"), "-c", "/a file", "--state-dir", "", PATH=path)
    assert result.stdout.splitlines() == [str(reconfig), "--replace", "-c", "/a file", "--state-dir", ""]
    assert result.returncode == 7


@pytest.mark.parametrize("place", ["checkout/scripts/lsmpy-reconfig", "checkout/.venv/bin/lsmpy-reconfig"])
def test_shim_finds_the_program_beside_itself(tmp_path: Path, bare: str, place: str) -> None:
    program(tmp_path / place, SHOW)
    shim(tmp_path / "checkout/scripts/config_router.sh")
    link = tmp_path / "config_router.sh"
    link.symlink_to("checkout/scripts/config_router.sh")
    result = run(link, "-v", PATH=bare)
    assert result.stdout.splitlines()[1:] == ["--replace", "-v"]
    assert Path(result.stdout.splitlines()[0]).resolve() == tmp_path / place


def test_shim_that_finds_nothing_says_so(tmp_path: Path, bare: str) -> None:
    result = run(shim(tmp_path / "config_router.sh"), PATH=bare)
    assert result.returncode == 1
    assert "Nothing was changed" in result.stderr


def test_shim_takes_a_python_that_has_lsmpy(tmp_path: Path, bare: str) -> None:
    program(Path(bare, "python3"), '[ "$1" = -c ] || printf "%s\\n" "$@"')
    result = run(shim(tmp_path / "config_router.sh"), "-v", PATH=bare)
    assert result.stdout.splitlines() == ["-m", "lsmpy.reconfig", "--replace", "-v"]


# -- lsm -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lsm", "foolsm"])
def test_lsm_s_shim_goes_by_its_name(tmp_path: Path, name: str) -> None:
    reconfig = tmp_path / "bin/lsmpy-probe"
    program(reconfig, SHOW)
    link = tmp_path / name
    link.symlink_to(SCRIPTS / "lsm")
    result = run(link, "-c", "/a file", "-f", PATH=f"{reconfig.parent}:{os.environ['PATH']}")
    own = ["--fork", "--config", f"/etc/{name}/{name}.conf", "--pidfile", f"/var/run/{name}.pid"]
    assert result.stdout.splitlines() == [str(reconfig), *own, "-c", "/a file", "-f"]
    assert result.returncode == 7


@pytest.mark.parametrize("name", ["lsm", "foolsm"])
def test_lsm_s_shim_is_whom_it_is_called_whatever_its_configuration_is_called(tmp_path: Path, name: str) -> None:
    asked = "import pathlib, sys; from lsmpy import source"
    asked += "; print(source.load(pathlib.Path(sys.argv[-1])).settings.flavour)"
    program(tmp_path / "bin/lsmpy-probe", f"exec {sys.executable} -c '{asked}' \"$@\"")
    link, conf = tmp_path / name, tmp_path / {"lsm": "foolsm.conf", "foolsm": "links.conf"}[name]
    link.symlink_to(SCRIPTS / "lsm")
    conf.write_text("connection {\n}\n")
    assert run(link, "-c", conf, PATH=f"{tmp_path}/bin:{os.environ['PATH']}").stdout == f"{name}\n"


def test_lsm_s_shim_takes_the_program_of_its_checkout_or_says_so(tmp_path: Path, bare: str) -> None:
    copy = tmp_path / "checkout/scripts/lsm"
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPTS / "lsm", copy)
    result = run(copy, PATH=bare)
    assert (result.returncode, result.stderr.startswith("lsm: error: there is no lsmpy-probe")) == (1, True)
    program(tmp_path / "checkout/.venv/bin/lsmpy-probe", SHOW)
    assert run(copy, "-v", PATH=bare).stdout.splitlines()[-1] == "-v"


# -- lsm_notify ----------------------------------------------------------------------------------------------

CALL = [
    "down",
    "c1",
    "192.0.2.1",
    "eth2",
    "root@example",
    "11",
    "3",
    "2",
    "0",
    "5",
    "1",
    "3",
    "78",
    "192.0.2.9",
    "up",
    "0",
]
OF_GROUP = ["up", "g", "", "", "root@example", *["0"] * 8, "", "unknown", "0"]


@pytest.mark.parametrize(("call", "debian"), [(CALL, "default_script"), (OF_GROUP, "group_script")])
def test_our_mail_has_the_address_and_the_subject_of_lsm_s(tmp_path: Path, call: list[str], debian: str) -> None:
    program(tmp_path / "mail", f'printf "%s|" "$@" >>{tmp_path}/asked; cat >>{tmp_path}/text')
    path = f"{tmp_path}:{os.environ['PATH']}"
    asked = []
    for script in (SCRIPTS / "lsm_notify", Path("/usr/share/lsm", debian)):
        assert run(script, *call, PATH=path).returncode == 0
        asked.append((tmp_path / "asked").read_text())
        (tmp_path / "asked").unlink()
    assert asked[0] == asked[1]
    said = (tmp_path / "text").read_text()
    assert said.startswith(f"{call[1]} has changed from {call[14]} to {call[0]} at ")
    assert ("2 of the last 100 probes, 3 of them in a row" in said) == (call is CALL)


def test_our_mail_goes_by_sendmail_where_there_is_no_mail(tmp_path: Path, bare: str) -> None:
    program(Path(bare, "sendmail"), f'printf "%s|" "$@" >{tmp_path}/asked; exec {shutil.which("cat")} >{tmp_path}/text')
    program(Path(bare, "date"), "echo then")
    assert run(SCRIPTS / "lsm_notify", *CALL, PATH=bare).returncode == 0
    assert (tmp_path / "asked").read_text() == "-t|"
    head, _, text = (tmp_path / "text").read_text().partition("\n\n")
    assert head.splitlines() == ["To: root@example", "Subject: LSM: c1 down, IP 192.0.2.1"]
    assert text.startswith("c1 has changed from up to down at then.\n\ncheckip     192.0.2.1 by eth2, from 192.0.2.9\n")


def test_our_mail_is_for_nobody_without_an_address(tmp_path: Path) -> None:
    program(tmp_path / "mail", f"touch {tmp_path}/asked")
    assert run(SCRIPTS / "lsm_notify", *CALL[:4], "", *CALL[5:], PATH=f"{tmp_path}:/bin").returncode == 0
    assert not (tmp_path / "asked").exists()


# -- systemd -------------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    """One unit; a key that stands twice is an error."""
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def settings(path: Path) -> dict[str, str]:
    """All of a unit's settings, whatever section they are in."""
    sections = unit(path)
    return {key: value for section in sections.sections() for key, value in sections[section].items()}


def entry_points() -> set[str]:
    """The programs that are installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return {line.split("=")[0].strip() for line in lines if line}


def test_there_is_a_unit_for_each_daemon() -> None:
    assert {path.stem for path in UNITS} == {*CAPABILITIES, *UNCONFINED}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_unit_starts_an_installed_program(path: Path) -> None:
    started, *arguments = unit(path)["Service"]["ExecStart"].split()
    assert started in entry_points()
    said = run(Path(sys.executable).with_name(started), "--help").stdout
    assert all(argument in said for argument in arguments if argument.startswith("-"))


@pytest.mark.parametrize("path", CONFINED, ids=lambda path: path.stem)
def test_unit_has_the_capabilities_it_needs_and_no_more(path: Path) -> None:
    service = unit(path)["Service"]
    assert set(service["CapabilityBoundingSet"].split()) == CAPABILITIES[path.stem]
    assert service["NoNewPrivileges"] == "yes"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_unit_keeps_the_contract_for_daemons(path: Path) -> None:
    sections = unit(path)
    service = sections["Service"]
    assert service["Restart"] == "on-failure"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert sections["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("path", CONFINED, ids=lambda path: path.stem)
def test_unit_may_write_what_it_writes_and_no_more(path: Path) -> None:
    service = unit(path)["Service"]
    # What it writes is writable: state files, the lock.
    assert service["ProtectSystem"] == "strict"
    made = [f"/run/{name}" for name in service.get("RuntimeDirectory", "").split()]
    assert WRITES[path.stem] in [*service.get("ReadWritePaths", "").split(), *made]


def test_unit_of_the_router_leaves_it_what_it_writes() -> None:
    service = unit(SCRIPTS / "systemd/lsmpy-reconfig.service")["Service"]
    assert service["StateDirectory"] == "lsmpy"  # /var/lib/lsmpy, as memory.directory() reads it from the environment
    assert service["KillMode"] == "mixed"
    assert "ProtectKernelTunables" not in service  # it sets rp_filter


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze; scripts/test installs Debian's")
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("ExecStart=", f"ExecStart={Path(sys.executable).parent}/"))
    result = run("systemd-analyze", "verify", "--man=no", copy)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_machine_whose_calls_are_not_known_is_told_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or tests of units would be passed there without what they test."""
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(SystemExit, match="riscv64 is not known"):
        as_unit.restrict({"AF_INET"})


def test_the_units_of_the_prober_differ_only_in_who_it_is_and_where_it_writes() -> None:
    root, rootless = (settings(SCRIPTS / f"systemd/{name}.service") for name in ("lsmpy-probe", "lsmpy-probe-rootless"))
    differ = {key for key in {*root, *rootless} if root.get(key) != rootless.get(key)}
    assert differ == {"Conflicts", "User", "AmbientCapabilities", "ReadWritePaths"}
    assert (root["User"], root["AmbientCapabilities"]) == ("root", "")
    assert (rootless["User"], rootless["AmbientCapabilities"]) == ("lsmpy", "CAP_NET_RAW")
    assert rootless["Conflicts"] == "lsmpy-probe.service"


def test_the_units_in_lsm_s_place_differ_only_in_what_they_read_and_where_it_writes() -> None:
    lsm, foolsm = (settings(SCRIPTS / f"systemd/lsmpy-{name}.service") for name in ("lsm", "foolsm"))
    lsm["ExecStart"] = lsm["ExecStart"].replace("/etc/lsm/lsm.conf", "/etc/foolsm/foolsm.conf")
    lsm["StateDirectory"] = lsm["StateDirectory"].replace("lsm", "foolsm")
    lsm["Conflicts"] += " lsmpy-lsm.service"  # one of them is enough for both, and none conflicts with itself
    lsm["Description"] = lsm["Description"].replace("lsm.conf", "foolsm.conf")
    assert lsm == foolsm


@pytest.mark.parametrize("name", ["lsmpy-lsm", "lsmpy-foolsm", "lsmpy-probe", "lsmpy-probe-rootless"])
def test_the_end_of_a_prober_is_not_that_of_a_script(name: str) -> None:
    assert unit(SCRIPTS / f"systemd/{name}.service")["Service"]["KillMode"] == "process"


@pytest.mark.parametrize("name", ["lsmpy-lsm", "lsmpy-foolsm", "lsmpy-probe", "lsmpy-probe-rootless"])
def test_a_prober_is_not_given_up_for_what_may_end_by_itself(name: str) -> None:
    sections = unit(SCRIPTS / f"systemd/{name}.service")
    assert sections["Unit"]["StartLimitIntervalSec"] == "0"
    assert sections["Service"]["RestartPreventExitStatus"] == "2"


def test_the_state_outlasts_a_prober_and_is_there_before_the_router() -> None:
    for name in ("lsmpy-probe", "lsmpy-probe-rootless"):
        service = unit(SCRIPTS / f"systemd/{name}.service")["Service"]
        assert (service["RuntimeDirectory"], service["RuntimeDirectoryPreserve"]) == ("lsmpy", "yes")
    after = unit(SCRIPTS / "systemd/lsmpy-reconfig.service")["Unit"]["After"]
    assert "lsmpy-probe-rootless.service" in after.split()
