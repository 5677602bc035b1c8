"""Scripts are run by another process: in order, never two at a time for one key, with a time limit."""

from __future__ import annotations

import json
import logging
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsmpy import caller, pending, state
from lsmpy.caller import Queue
from lsmpy.calls import Caller, CallerError
from lsmpy.events import Call


def script(place: Path, text: str, name: str = "event") -> str:
    path = place / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if record.levelno == level and record.name.startswith("lsmpy")
    ]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


# -- one call --------------------------------------------------------------------------------------------------


def test_a_script_gets_its_arguments_and_lsm_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.delenv("TERM", raising=False)
    program = tmp_path / "event"
    tell = f"open({str(tmp_path / 'out')!r}, 'w').write(repr((sys.argv, dict(os.environ))))"
    program.write_text(f"#!{sys.executable} -S\nimport os, sys\n{tell}\n")
    program.chmod(0o755)
    argv = (str(program), "up", "name with spaces", "", "a'b\"$c", "*")
    caller.run(argv, 10)
    given, environment = eval((tmp_path / "out").read_text())
    assert tuple(given) == argv
    environment.pop("LC_CTYPE", None)  # Python's own
    assert environment == {"LANG": "de_DE.UTF-8", "PATH": "/usr/bin:/bin"}


def test_a_script_ignores_no_signal_and_blocks_none(tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ["", ["of a"], [script(tmp_path, f"grep -E 'Sig(Ign|Blk)' /proc/self/status >{out}")]]
    argv = ["env", "--default-signal", sys.executable, "-m", "lsmpy.caller", str(tmp_path)]  # as init starts it
    subprocess.run(argv, input=json.dumps(call), text=True, check=True)
    own = 0b11 << 31  # two signals of the C library's own, which nobody else can set
    assert [int(line.split()[1], 16) & ~own for line in out.read_text().splitlines()] == [0, 0]


def test_without_a_path_there_is_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    caller.run((script(tmp_path, f'echo "$PATH" >{tmp_path}/out'),), 10)
    assert (tmp_path / "out").read_text().startswith("/usr/local/sbin:")


def test_what_it_prints_is_logged_with_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caller.run((script(tmp_path, "echo one; echo two >&2; printf three"),), 10)
    assert messages(caplog, logging.INFO) == ["event: one", "event: two", "event: three"]


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0, 'failed to stat event script "{path}" reason "No such file or directory"'),
        ("#!/bin/sh\n", 0o644, 'event script "{path}" is not executable by owner, please check permissions'),
        ("#!/bin/sh\necho no >&2; exit 3\n", 0o755, "event script: {path} up ended with status 3"),
        ("#!/nowhere/sh\n", 0o755, "event script: {path} up could not be run"),
        ("no shebang\n", 0o755, "event script: {path} up could not be run"),
    ],
)
def test_a_script_that_fails_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None, mode: int, said: str
) -> None:
    path = tmp_path / "event"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    caller.run((str(path), "up"), 10)
    told = messages(caplog, logging.ERROR) + messages(caplog, logging.WARNING)
    assert len(told) == 1
    assert told[0].startswith(said.format(path=path)), told


def test_a_script_has_a_time_and_what_it_started_ends_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "alive"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    caller.run((script(tmp_path, f"exec 3>{pipe}; sleep 1000 & wait"),), 0.3)
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # nobody has it open any more
    os.close(reader)
    assert messages(caplog, logging.WARNING)[0].endswith("it has 0.3 s")


def test_who_prints_more_than_is_logged_is_heard_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = f'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo "line $i {"x" * 90}"; done; echo done >{tmp_path}/out'
    assert caller.run((script(tmp_path, text),), 10) == 0
    assert (tmp_path / "out").read_text() == "done\n"
    assert messages(caplog, logging.INFO)[-1] == "event says more than is logged"


# -- many ------------------------------------------------------------------------------------------------------


def test_calls_with_a_key_in_common_are_one_after_another_and_others_are_not(tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    os.mkfifo(gate)
    slow = script(tmp_path, f'read x <{gate}; echo "$1" >>{out}', "slow")
    quick = script(tmp_path, f'echo "$1" >>{out}', "quick")
    free = script(tmp_path, f"echo free >>{out}; echo >{gate}", "free")
    queue = Queue(10)
    queue.add(Call(("of a", "queue q"), (slow, "1")))
    queue.add(Call(("of a",), (quick, "2")))
    queue.add(Call(("of b", "queue q"), (quick, "3")))
    queue.add(Call(("of b",), (quick, "4")))
    queue.add(Call(("of c",), (free,)))  # without it the first never ends
    queue.wait()
    told = out.read_text().split()
    assert told[:2] == ["free", "1"]
    assert told.index("3") < told.index("4")
    assert sorted(told[2:]) == ["2", "3", "4"]


def test_a_thousand_calls_of_ten_are_each_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    under_way: set[str] = set()
    lock = threading.Lock()

    def run(argv: tuple[str, ...], _: float) -> int:
        with lock:
            assert argv[0] not in under_way
            under_way.add(argv[0])
        with lock:
            made.append(argv)
            under_way.remove(argv[0])
        return 0

    monkeypatch.setattr(caller, "run", run)
    queue = Queue()
    for number in range(1000):
        queue.add(Call((f"of {number % 10}",), (str(number % 10), str(number))))
    queue.wait()
    assert sorted(int(argv[1]) for argv in made) == list(range(1000))
    for name in map(str, range(10)):
        numbers = [int(argv[1]) for argv in made if argv[0] == name]
        assert numbers == sorted(numbers)


# -- from the prober -------------------------------------------------------------------------------------------


@pytest.fixture
def selector() -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as made:
        yield made


def serve(selector: selectors.BaseSelector) -> None:
    """What the prober's loop does, once."""
    for key, _ in selector.select(10):
        key.data(0)


def test_calls_come_through_and_the_process_ends_by_itself(tmp_path: Path, selector: selectors.BaseSelector) -> None:
    out = tmp_path / "out"
    write = script(tmp_path, f'sleep 0.1; echo "$@" >>{out}')
    other = Caller(selector, tmp_path / "lsmpy/calls")
    other.call([Call(("of a",), (write, str(n), "é")) for n in range(3)])
    other.close()
    assert os.waitpid(other.pid, 0)[1] == 0
    assert out.read_text().splitlines() == ["0 é", "1 é", "2 é"]


def test_the_working_directory_cannot_be_in_its_place(
    tmp_path: Path, selector: selectors.BaseSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lsmpy").mkdir()
    (tmp_path / "lsmpy/__init__.py").touch()
    (tmp_path / "lsmpy/caller.py").write_text("import sys; sys.exit(7)")
    monkeypatch.chdir(tmp_path)
    other = Caller(selector, tmp_path / "lsmpy/calls")
    other.close()
    assert os.waitpid(other.pid, 0)[1] == 0


def test_a_script_that_hangs_never_holds_the_prober_up(tmp_path: Path, selector: selectors.BaseSelector) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    os.mkfifo(gate)
    hang = script(tmp_path, f"read x <{gate}", "hang")
    other = Caller(selector, tmp_path / "lsmpy/calls")
    other.call([Call(("of a",), (hang, "x" * 1000))])
    count = 2000  # more than a pipe holds while nobody reads
    os.kill(other.pid, signal.SIGSTOP)
    other.call([Call(("of a",), ("/nowhere", "x" * 1000)) for _ in range(count)])
    os.kill(other.pid, signal.SIGCONT)
    other.call([Call(("of b",), (script(tmp_path, f"echo b >{out}"),))])
    while other.waiting:
        serve(selector)
    other.close()
    with gate.open("w"):
        pass
    assert os.waitpid(other.pid, 0)[1] == 0
    assert out.read_text() == "b\n"


def test_the_prober_does_not_live_on_without_it(tmp_path: Path, selector: selectors.BaseSelector) -> None:
    other = Caller(selector, tmp_path / "lsmpy/calls")
    os.kill(other.pid, signal.SIGKILL)
    with pytest.raises(CallerError, match="has died"):
        serve(selector)
    other.close()
    os.waitpid(other.pid, 0)


def test_a_process_that_cannot_be_started_is_told(
    tmp_path: Path, selector: selectors.BaseSelector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CallerError, match="No such file"):
        Caller(selector, tmp_path / "lsmpy/calls")


def test_signals_for_the_service_leave_scripts_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    call = ["", ["of a"], [script(tmp_path, f"read x <{gate}; echo done >{out}")]]
    argv = [sys.executable, "-m", "lsmpy.caller", str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        print(json.dumps(call), file=process.stdin, flush=True)
        with gate.open("w") as opened:  # as soon as the script waits
            for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                process.send_signal(each)
            opened.write("\n")
    assert process.returncode == 0
    assert out.read_text() == "done\n"


def test_what_a_script_leaves_in_the_background_may_go_on_printing(
    tmp_path: Path, selector: selectors.BaseSelector
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    os.mkfifo(gate)
    begin = script(tmp_path, f"(read x <{gate}; echo hello; echo alive >{out}) &", "begin")
    after = script(tmp_path, f"echo >{gate}", "after")  # the first is over by then
    other = Caller(selector, tmp_path / "lsmpy/calls")
    other.call([Call(("of a",), (begin,)), Call(("of a",), (after,))])
    other.close()
    assert os.waitpid(other.pid, 0)[1] == 0
    assert out.read_text() == "alive\n"


# -- restarts --------------------------------------------------------------------------------------------------


class Slow:
    """A script that notes how it was called, and ends when it is told to."""

    def __init__(self, place: Path) -> None:
        self.gate, self.out, self.pid = place / "gate", place / "out", place / "pid"
        os.mkfifo(self.gate)
        text = f'echo $$ >{self.pid}; echo "begin $1" >>{self.out}; read x <{self.gate}; echo "end $1" >>{self.out}'
        self.path = script(place, text, "slow")

    def call(self, word: str) -> Call:
        return Call(("of a",), (self.path, word))

    def let_go(self) -> None:
        """Wait until it waits, and let it end."""
        with self.gate.open("w") as opened:
            end = os.pidfd_open(int(self.pid.read_text()))
            opened.write("\n")
        select.select([end], [], [])
        os.close(end)

    def told(self) -> list[str]:
        return self.out.read_text().splitlines()


@pytest.mark.parametrize("script_first", [True, False])
def test_a_script_that_ends_with_the_service_is_called_again_and_in_order(
    tmp_path: Path, selector: selectors.BaseSelector, script_first: bool
) -> None:
    """Whoever stops a service may signal all its processes."""
    slow, place = Slow(tmp_path), tmp_path / "lsmpy/calls"
    first = Caller(selector, place)
    first.call([slow.call("down"), slow.call("up")])
    with slow.gate.open("w"):
        pids = [int(slow.pid.read_text()), first.pid]
        for pid in pids if script_first else reversed(pids):
            os.kill(pid, signal.SIGTERM)
        first.close()
        assert os.waitpid(first.pid, 0)[1] == 0
    second = Caller(selector, place)
    second.resume({slow.path})
    second.close()
    slow.let_go()
    slow.let_go()
    assert os.waitpid(second.pid, 0)[1] == 0
    assert slow.told() == ["begin down", "begin down", "end down", "begin up", "end up"]
    assert list(place.iterdir()) == []


def test_a_crash_loses_no_call(tmp_path: Path, selector: selectors.BaseSelector) -> None:
    slow, place = Slow(tmp_path), tmp_path / "lsmpy/calls"
    first = Caller(selector, place)
    first.call([slow.call("down")])
    with slow.gate.open("w"):
        for pid in (first.pid, int(slow.pid.read_text())):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(first.pid, 0)
    first.close()
    second = Caller(selector, place)
    second.resume({slow.path})
    second.close()
    slow.let_go()
    assert os.waitpid(second.pid, 0)[1] == 0
    assert slow.told() == ["begin down", "begin down", "end down"]


def test_who_comes_after_a_restart_waits_for_the_scripts_of_before_it(
    tmp_path: Path, selector: selectors.BaseSelector
) -> None:
    slow, place = Slow(tmp_path), tmp_path / "lsmpy/calls"
    first = Caller(selector, place)
    first.call([slow.call("down"), slow.call("up")])
    first.close()
    second = Caller(selector, place)
    second.resume({slow.path})
    second.call([slow.call("again")])
    second.close()
    for _ in range(3):
        slow.let_go()
    assert [os.waitpid(each.pid, 0)[1] for each in (first, second)] == [0, 0]
    told = [f"{word} {name}" for name in ("down", "up", "again") for word in ("begin", "end")]
    assert slow.told() == told


def test_a_script_that_somebody_ends_is_not_called_again(tmp_path: Path, selector: selectors.BaseSelector) -> None:
    place = tmp_path / "lsmpy/calls"
    other = Caller(selector, place)
    other.call([Call(("of a",), (script(tmp_path, "kill $$"),)), Call(("of a",), (script(tmp_path, "exit 3", "bad"),))])
    other.close()
    assert os.waitpid(other.pid, 0)[1] == 0
    assert list(place.iterdir()) == []


def test_only_calls_of_this_boot_and_of_our_scripts_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(state, "boot", lambda: "another")
        pending.keep(tmp_path, Call(("of a",), ("/e", "of another boot")))
    pending.keep(tmp_path, Call(("of a",), ("/other",)))
    pending.keep(tmp_path, Call(("of a",), ()))
    (tmp_path / "0").write_text("{")
    kept = [pending.keep(tmp_path, Call((f"of {n}",), ("/e", str(n)))) for n in range(20)]
    assert list(pending.left(tmp_path, {"/e"})) == [
        (path, Call((f"of {n}",), ("/e", str(n)))) for n, path in enumerate(kept)
    ]
    assert sorted(tmp_path.iterdir()) == kept
    assert list(pending.left(tmp_path / "missing", {"/e"})) == []


def test_a_call_that_cannot_be_kept_is_made_all_the_same(
    tmp_path: Path, selector: selectors.BaseSelector, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    (tmp_path / "lsmpy").touch()
    other = Caller(selector, tmp_path / "lsmpy/calls")
    for n in range(2):
        other.call([Call(("of a",), (script(tmp_path, f"echo $1 >>{out}"), str(n)))])
    other.close()
    assert os.waitpid(other.pid, 0)[1] == 0
    assert out.read_text() == "0\n1\n"
    assert len(messages(caplog, logging.ERROR)) == 1
