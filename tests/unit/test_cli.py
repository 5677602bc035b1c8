"""`lsmpy`: what it says and does for people, and with which status it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsmpy import ConfigError, LsmpyError, __version__, cli, config, rehearse, state
from tests.conftest import SAMPLE

# Only the prober can do with a gateway that the kernel tells.
FOLLOWING = """
[[isp]]
name = "DSL"
interface = "ppp0"
address = "auto"
gateway = "auto"
check = "203.0.113.1"
"""


@pytest.fixture
def force(tmp_path: Path) -> list[str]:
    return ["force", "-c", str(SAMPLE), "--state-dir", str(tmp_path)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lsmpy {__version__}\n"


@pytest.mark.parametrize(
    "argv", [[], ["fly"], ["force", "ISP1"], ["force", "ISP1", "sideways"], ["rehearse", "--loud"], ["status", "ISP1"]]
)
def test_a_wrong_command_line_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "usage: lsmpy" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["up", "down"])
def test_force_writes_the_file_and_says_how_to_undo_it(
    to: str, force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*force, "ISP1", to]) == 0
    assert (tmp_path / "ISP1_force").read_text() == f"{to}\n"
    said = capsys.readouterr().out
    assert said.startswith(f"ISP1 is forced {to}")
    assert "lsmpy force ISP1 auto" in said


@pytest.mark.parametrize(("file", "now"), [("up", "up"), ("down", "down"), (None, "up")])
def test_auto_gives_the_isp_back_to_its_state_file(
    file: str | None, now: str, force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if file:
        state.write(state.state_path(tmp_path, "ISP2"), file)
    state.write(state.force_path(tmp_path, "ISP2"), "down")
    assert cli.main([*force, "ISP2", "auto"]) == 0
    assert not (tmp_path / "ISP2_force").exists()
    assert f"is {now} " in capsys.readouterr().out
    assert cli.main([*force, "ISP2", "auto"]) == 0


def test_an_unknown_isp_is_status_2_with_the_known_ones(
    force: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*force, "../etc/passwd", "down"]) == 2
    error = capsys.readouterr().err
    assert error == "lsmpy: error: there is no ISP ../etc/passwd; known are ISP1, ISP2. Nothing was changed\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_state_directory_is_not_made(force: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    force[-1] += "/missing"
    assert cli.main([*force, "ISP1", "down"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert not Path(force[-1]).exists()


def test_a_missing_configuration_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rehearse", "-c", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.startswith("lsmpy: error: ")


@pytest.mark.parametrize(("texts", "code"), [(("up", "up"), 0), (("down", "up"), 1), (("down", "long_down"), 2)])
def test_status_tells_how_many_are_up(
    texts: tuple[str, ...], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in zip(("ISP1", "ISP2"), texts, strict=True):
        state.write(state.state_path(tmp_path, name), text)
    command = ["status", "-c", str(SAMPLE), "--state-dir", str(tmp_path)]
    assert cli.main(command) == code
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["ISP1", "up" if texts[0] == "up" else "down"]
    assert cli.main([*command, "--json"]) == code
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["isps"]] == ["ISP1", "ISP2"]


def test_status_of_a_missing_directory_or_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "-c", str(SAMPLE), "--state-dir", str(tmp_path / "none")]) == 1
    assert cli.main(["status", "-c", str(tmp_path / "none.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.startswith("lsmpy: error: ") for line in captured.err.splitlines()] == [True, True]


def test_what_only_the_prober_can_use_is_shown_and_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lsmpy.toml"
    path.write_text(f'state_dir = "{tmp_path}"\n{FOLLOWING}' + FOLLOWING.replace("DSL", "OTHER"))  # on one interface
    with pytest.raises(ConfigError):
        config.load(path)
    assert cli.main(["force", "-c", str(path), "DSL", "down"]) == 0
    assert cli.main(["status", "-c", str(path)]) == 1
    assert capsys.readouterr().out.splitlines()[2].split()[:3] == ["DSL", "down", "down"]


def test_rehearse_passes_options_and_status_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, bool]] = []

    def fake(path: Path, as_json: bool) -> int:
        calls.append((path, as_json))
        return 1

    monkeypatch.setattr(rehearse, "rehearse", fake)
    assert cli.main(["rehearse", "-c", "x.toml", "--json"]) == 1
    assert calls == [(Path("x.toml"), True)]


def test_an_error_of_the_rehearsal_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, as_json: bool) -> int:
        raise LsmpyError(f"no rehearsal of {path}, {as_json}")

    monkeypatch.setattr(rehearse, "rehearse", fail)
    assert cli.main(["rehearse", "-c", "x.toml"]) == 1
    assert capsys.readouterr().err == "lsmpy: error: no rehearsal of x.toml, False\n"


def test_a_file_that_the_sandbox_hides_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lsmpy.sandbox.inside", lambda: False)
    monkeypatch.setattr("lsmpy.sandbox.hides", lambda _: True)
    assert cli.main(["rehearse", "-c", str(SAMPLE)]) == 1
    assert "copy it elsewhere" in capsys.readouterr().err


LSM = """
connection {
 name=c1
 checkip=192.0.2.1
 device=eth1
 ttl=1 # of a neighbour
}
group {
 name=g
 member-connection=c1
}
"""


def test_an_lsm_conf_is_shown_and_forced_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "lsm.conf"
    conf.write_text(LSM)
    (tmp_path / "c1_state").write_text("up\n")
    (tmp_path / "g_state").write_text("down\n")
    common = ["-c", str(conf), "--state-dir", str(tmp_path)]
    assert cli.main(["status", "--json", *common]) == 1
    assert [(isp["name"], isp["state"]) for isp in json.loads(capsys.readouterr().out)["isps"]] == [
        ("c1", "up"),
        ("g", "down"),
    ]
    assert cli.main(["force", *common, "c1", "down"]) == 0
    assert (tmp_path / "c1_force").read_text() == "down\n"


def test_a_name_that_leads_out_of_the_directory_has_no_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf, states = tmp_path / "lsm.conf", tmp_path / "states"
    conf.write_text(LSM.replace("name=c1", "name=../x").replace("=c1", "=../x"))
    states.mkdir()
    common = ["-c", str(conf), "--state-dir", str(states)]
    assert cli.main(["force", *common, "../x", "down"]) == 2
    assert "there is no ISP ../x" in capsys.readouterr().err
    assert cli.main(["status", "--json", *common]) == 0
    assert [isp["name"] for isp in json.loads(capsys.readouterr().out)["isps"]] == ["g"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lsm.conf", "states"]


def test_an_lsm_conf_is_printed_as_lsmpy_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "lsm.conf"
    conf.write_text(LSM.replace("ttl=1", "ttl=1x"))
    assert cli.main(["import", str(conf)]) == 0
    said = capsys.readouterr()
    (isp,) = config.parse(said.out.encode(), "lsmpy.toml", {}).isps
    assert (isp.name, isp.interface, isp.check) == ("g", "eth1", ("192.0.2.1",))
    assert f'{conf}:6: ttl: "1x" is taken for 1' in said.err


def test_an_lsm_conf_that_is_wrong_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = tmp_path / "lsm.conf"
    conf.write_text(LSM.replace("device", "devise"))
    assert cli.main(["import", str(conf)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"lsmpy: error: {conf}:5: connection.devise: unrecognised connection config option;")
