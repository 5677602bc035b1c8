"""In the background as LSM is: a pid file that is one daemon's alone, and syslog."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import syslog
from pathlib import Path

import pytest

from lsmpy import background, probe
from lsmpy.background import PidFileError

FORK = """
import os, sys, time
from pathlib import Path
from lsmpy import background
fork = os.fork
os.fork = lambda: fork() or time.sleep(0.3) or 0  # the new process is slow
with background.running(Path(sys.argv[1]), True):
    state = f"{os.getpid()} {os.getsid(0)} {os.readlink('/proc/self/fd/1')} {os.getcwd()}"
    Path(sys.argv[2]).write_text(state + " " + Path(sys.argv[1]).read_text())
    open(sys.argv[3]).read()
"""


def test_a_pid_file_is_one_daemon_s_and_gone_after_it(tmp_path: Path) -> None:
    path = tmp_path / "lsm.pid"
    path.write_text("123456789 of somebody who was killed\n")
    with background.running(path, False):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(PidFileError, match=f"is locked by process {os.getpid()}"), background.running(path, False):
            pass
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_new_pid_file_is_not_for_all(tmp_path: Path) -> None:
    path = tmp_path / "lsm.pid"
    with background.running(path, False):
        assert path.stat().st_mode & 0o777 == 0o640


def test_who_stops_it_may_have_removed_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lsm.pid"
    with background.running(path, False):
        path.unlink()


def test_a_pid_file_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(PidFileError, match="cannot open the pid file"), background.running(tmp_path / "x/y", False):
        pass


def test_in_the_background_it_has_a_session_and_no_terminal_and_keeps_the_lock(tmp_path: Path) -> None:
    pid, told, gate = (tmp_path / name for name in ("pid", "told", "gate"))
    os.mkfifo(gate)
    argv = [sys.executable, "-c", FORK, str(pid), str(told), str(gate)]
    done = subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0
    assert pid.read_text().endswith("\n")  # it is there as soon as we go on
    with gate.open("w"):  # which it opens when it has told
        process, session, output, place, written = told.read_text().split()
        assert process == session == written
        assert (output, place) == ("/dev/null", str(tmp_path))
        with pytest.raises(PidFileError, match=f"by process {process}"), background.running(pid, False):
            pass


def test_an_lsm_logs_to_syslog_and_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[tuple[object, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *words: said.append(words))
    monkeypatch.setattr(syslog, "syslog", lambda *words: said.append(words))
    before = logging.root.handlers[:], logging.root.level
    try:
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")  # of somebody above us, who has another standard error
        background.log_to("lsm")
        logging.getLogger("lsmpy").error("one\ntwo \udc80")
        own = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{own.st_dev}:{own.st_ino}")
        background.log_to("lsm")
        logging.getLogger("lsmpy").info("three")
        background.log_to(None)
        logging.getLogger("lsmpy").warning("four")
    finally:
        logging.root.handlers[:], logging.root.level = before
        logging.getLogger("sh").setLevel(logging.NOTSET)
    opened = ("lsm", syslog.LOG_PID, syslog.LOG_DAEMON)
    assert said == [
        opened,
        (syslog.LOG_ERR, "one"),
        (syslog.LOG_ERR, "two \\udc80"),
        opened,
        (syslog.LOG_INFO, "three"),
    ]
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[-1]) == ("one", "four")
    assert "three" not in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the configuration"),
        ("", "no targets found in config file"),
        ("-include /nowhere/*.conf\n", "no targets found in config file"),
        ("connection {\n checkip=x\n}\n", "checkip"),
    ],
)
def test_a_missing_empty_or_wrong_lsm_conf_ends_with_2(
    tmp_path: Path, text: str | None, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With any other status its unit would start it again every second. LSM says 1 of the first three."""
    monkeypatch.setattr(background, "log_to", lambda _: None)
    path = tmp_path / "lsm.conf"
    if text is not None:
        path.write_text(text)
    pid = tmp_path / "pid"
    assert probe.main(["--fork", "-p", str(pid), "-c", str(path)]) == 2
    assert said in caplog.text
    assert not pid.exists()


def test_a_configuration_from_a_pipe_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "log_to", lambda _: None)
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as file:
        file.write("connection {\n checkip=x\n}\n")
        file.close()
        assert probe.main(["-c", f"/dev/fd/{reading}", "--state-dir", str(tmp_path)]) == 2
    assert f"/dev/fd/{reading}:2: connection.checkip: " in caplog.text


@pytest.mark.parametrize(("option", "said"), [("-v", "lsmpy-probe version "), ("-h", "usage: lsmpy-probe ")])
def test_who_asks_for_help_or_the_version_has_it(option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        probe.main([option])
    assert caught.value.code == 0  # and not 2, as LSM's
    assert capsys.readouterr().out.startswith(said)
