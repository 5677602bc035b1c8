"""Programs that are run after a rebuild, with real ones: what they hear, what is heard of them, and that none harms."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsmpy import after
from lsmpy.after import News, Programs

CONFIG = Path("/etc/lsmpy/lsmpy.toml")
NEWS = News(("A", "C"), ("B",), ("B",), CONFIG)
TELL = 'echo "up=$LSMPY_UP down=$LSMPY_DOWN changed=$LSMPY_CHANGED config=$LSMPY_CONFIG"'


@pytest.fixture
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    made = Programs(timeout_s=getattr(request, "param", 0.5))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, after.__name__)


def script(place: Path, text: str, name: str = "hook") -> str:
    path = place / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def lives(pid: str) -> bool:
    """Whether a process is there and not only unburied."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def test_a_program_is_told_who_is_up_and_what_has_changed(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    programs.tell([script(tmp_path, TELL), script(tmp_path, "echo $PATH; cat; echo bad >&2; printf end", "two")], NEWS)
    programs.wait()
    first, path, *rest = said(caplog)
    assert first == f"hook: up=A C down=B changed=B config={CONFIG}"
    assert "/usr/sbin" in path
    assert rest == ["two: bad", "two: end"]
    assert warnings(caplog) == []


def test_what_fails_is_told_and_the_next_one_runs(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "nonsense").write_text("\0\1\2")
    (tmp_path / "nonsense").chmod(0o755)
    lame = script(tmp_path, "echo why; exit 3")
    good = script(tmp_path, "echo done", "good")
    nothing = [str(tmp_path / "missing"), str(tmp_path / "plain"), str(tmp_path / "nonsense"), str(tmp_path)]
    programs.tell([lame, *nothing, good], NEWS)
    programs.wait()
    assert said(caplog) == ["hook: why", "good: done"]
    assert warnings(caplog)[0].startswith(f"[rules] after: {lame} ended with status 3")
    assert [path in text for path, text in zip(nothing, warnings(caplog)[1:], strict=True)] == [True] * 4
    assert all("The router is not concerned" in text for text in warnings(caplog))


def test_one_that_hangs_is_killed_with_what_it_has_started(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    hang = script(tmp_path, f"sleep 61 & echo $! > {tmp_path}/pid; trap '' TERM; sleep 61; sleep 61")
    programs.tell([hang, script(tmp_path, "echo done", "good")], NEWS)
    assert time.monotonic() - began < 0.5  # nobody waits for it
    programs.wait()
    assert time.monotonic() - began < 30
    assert said(caplog) == ["good: done"]
    assert "ended with status -9" in warnings(caplog)[0]
    assert "it has 0.5 s" in warnings(caplog)[0]
    assert not lives((tmp_path / "pid").read_text().strip())


def test_one_that_goes_on_in_the_background_holds_nobody_up(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    programs.tell([script(tmp_path, "echo here; sleep 5 &"), script(tmp_path, "echo done", "good")], NEWS)
    programs.wait()
    assert time.monotonic() - began < 4
    assert said(caplog) == ["hook: here", "good: done"]


@pytest.mark.parametrize("flood", ["yes", "cat /dev/zero", "yes | tr -d '\\n'"])
def test_one_that_never_stops_talking_is_cut_short(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture, flood: str
) -> None:
    programs.tell([script(tmp_path, flood)], NEWS)
    programs.wait()
    assert len(said(caplog)) == 200
    assert said(caplog)[-1] == "hook says more than is logged"
    assert max(map(len, said(caplog))) < 520


@pytest.mark.parametrize("programs", [60], indirect=True)
def test_news_that_come_meanwhile_are_told_once_with_all_that_has_changed(
    programs: Programs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    hooks = [script(tmp_path, f"{TELL}\ntouch {begun}\nwhile [ ! -e {go} ]; do sleep 0.01; done")]
    programs.tell(hooks, News(("A", "B", "C"), (), (), CONFIG))
    while not begun.exists():
        time.sleep(0.01)
    programs.tell(hooks, News(("A", "B"), ("C",), ("C",), CONFIG))
    programs.tell(hooks, News(("B",), ("C", "A"), ("A",), CONFIG))
    go.touch()
    programs.wait()
    assert said(caplog) == [
        f"hook: up=A B C down= changed= config={CONFIG}",
        f"hook: up=B down=C A changed=C A config={CONFIG}",
    ]


def test_closing_ends_the_one_that_runs_and_begins_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    programs, began = Programs(), time.monotonic()
    programs.tell([script(tmp_path, "echo here; sleep 60"), script(tmp_path, "echo never", "never")], NEWS)
    time.sleep(0.2)
    programs.close()
    assert time.monotonic() - began < 1
    assert "never: never" not in said(caplog)


@pytest.mark.parametrize("text", ["setsid sleep 6 &", "setsid sleep 6 &\nexec sleep 60", "setsid sleep 6 &\nsleep 60"])
def test_what_one_leaves_behind_does_not_hold_up_the_end(tmp_path: Path, text: str) -> None:
    """It is in a session of its own, where it is not killed, and holds what the program printed to."""
    programs = Programs()
    programs.tell([script(tmp_path, f"echo here; {text}")], NEWS)
    time.sleep(0.3)
    began = time.monotonic()
    programs.close()
    assert time.monotonic() - began < 0.8


def test_without_programs_there_is_no_thread(programs: Programs) -> None:
    programs.tell([], NEWS)
    assert programs.idle
