"""The door to programs, with real ones."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lsmpy import command
from lsmpy.command import CommandError, Running


def lives(running: Running) -> bool:
    return running.alive


def test_what_a_program_prints_comes_back_and_its_errors_do_not() -> None:
    assert command.run("sh", "-c", "echo out; echo err >&2") == "out\n"


def test_arguments_are_words_and_no_shell_reads_them() -> None:
    words = ["$(reboot)", "a b", "*", "'\"", "; false", "-n\n"]
    assert command.run("printf", "%s|", *words) == "|".join(words) + "|"


def test_a_large_input_and_output_pass() -> None:
    text = "0123456789abcdef\n" * 100_000
    assert command.run("cat", stdin=text) == text


def test_a_program_without_input_is_not_left_waiting() -> None:
    assert command.run("cat") == ""


def test_messages_do_not_depend_on_who_runs_us() -> None:
    assert command.run("sh", "-c", "echo $LC_ALL") == "C\n"


def test_administrators_programs_are_found_without_their_path() -> None:
    assert {"/usr/sbin", "/sbin"} <= set(command.run("sh", "-c", "echo $PATH").strip().split(os.pathsep))


def test_a_failure_tells_what_was_run_how_it_ended_and_what_it_said() -> None:
    with pytest.raises(CommandError, match=r"^sh -c .* ended with status 3: bad things$") as caught:
        command.run("sh", "-c", "echo some; echo bad things >&2; exit 3")
    error = caught.value
    assert (error.argv[0], error.status, error.stdout, error.stderr) == ("sh", 3, "some\n", "bad things")


def test_a_silent_failure_says_so() -> None:
    with pytest.raises(CommandError, match=r"^false ended with status 1: it said nothing$"):
        command.run("false")


def test_a_long_message_is_kept_whole() -> None:
    with pytest.raises(CommandError) as caught:
        command.run("sh", "-c", "seq 20000 >&2; exit 1")
    assert caught.value.stderr.endswith("\n19999\n20000")


def test_what_is_no_text_does_not_hurt() -> None:
    assert command.run("printf", r"\377up") == "�up"
    with pytest.raises(CommandError, match="�"):
        command.run("sh", "-c", r"printf '\377' >&2; exit 1")


def test_a_missing_program_is_told_with_a_remedy() -> None:
    with pytest.raises(
        CommandError, match=r"^lsmpy-nowhere could not be run: there is no such program .* install it$"
    ) as caught:
        command.run("lsmpy-nowhere", "x")
    assert caught.value.status is None


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (
            "echo no first line",
            0o755,
            'it is no program of this machine; the first line of a script names .* "#!/bin/sh"',
        ),
        ("#!/nowhere/sh\n", 0o755, "the interpreter that its first line names is not there, or .*"),
        ("#!/bin/sh\r\necho\r\n", 0o755, "the interpreter .*, or its lines end as on Windows"),
        ("#!/bin/sh\n", 0o644, r"it is not executable; if it is a program: chmod \+x .*/hook"),
        (None, 0, "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_run_is_told_with_a_remedy(tmp_path: Path, text: str | None, mode: int, why: str) -> None:
    hook = tmp_path / "hook"
    if text is not None:
        hook.write_text(text)
        hook.chmod(mode)
    with pytest.raises(CommandError, match=rf"^{hook} could not be run: {why}$"):
        command.run(str(hook))


def test_a_directory_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"could not be run: it is a directory, and no program$"):
        command.run(str(tmp_path))


def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(CommandError) as caught:
        command.run("sleep", "60", timeout_s=0.1)
    assert caught.value.status == -9


def test_two_run_at_once(tmp_path: Path) -> None:
    # Each end of a pipe waits for the other: one after the other they would never end.
    os.mkfifo(tmp_path / "pipe")
    reader = command.start(["cat", str(tmp_path / "pipe")])
    writer = command.start(["sh", "-c", 'echo met >"$0"', str(tmp_path / "pipe")])
    assert (reader.wait(), writer.wait()) == ("met\n", "")


def test_lines_are_told_as_they_come_and_a_daemon_can_be_stopped() -> None:
    lines: list[str] = []
    enough = threading.Event()

    def on_line(line: str) -> None:
        lines.append(line.strip())
        if len(lines) == 2:
            enough.set()

    running = command.start(["sh", "-c", "echo one; echo two >&2; exec sleep 60"], timeout_s=None, on_line=on_line)
    assert enough.wait(20)
    assert lives(running)
    assert running.pid > 0
    running.stop()
    assert not lives(running)
    assert sorted(lines) == ["one", "two"]
    running.stop()  # once more does no harm


def test_a_daemon_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Soon(threading.Timer):
        def __init__(self, _: float, function: object, args: object = None) -> None:
            super().__init__(0.1, function, args)  # type: ignore[arg-type]

    monkeypatch.setattr(threading, "Timer", Soon)
    ready = threading.Event()
    running = command.start(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"],
        timeout_s=None,
        on_line=lambda _: ready.set(),
    )
    assert ready.wait(20)
    running.stop()
    assert not lives(running)
