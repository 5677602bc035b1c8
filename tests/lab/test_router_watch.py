"""`lsmpy-reconfig --watch`: whatever becomes of the state files, the last state wins, and soon."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lsmpy import apply
from lsmpy.command import CommandError
from lsmpy.lab import ROUTER, wait_until
from tests.lab.router_kit import Rig, Watcher, configuration, rig

pytestmark = pytest.mark.lab

UP, DOWN = "up ISP1 ISP2", "up ISP1, down ISP2"


def await_verdict(watcher: Watcher, text: str, deadline_s: float = 5.0) -> None:
    wait_until(
        lambda: watcher.rebuilds and watcher.rebuilds[-1].rstrip().partition(": ")[2].startswith(text),
        what=f"{text!r} after {watcher.rebuilds[-1:]}",
        deadline_s=deadline_s,
    )


def is_down(router: Rig) -> bool:
    return "LSMPY-M-ISP2" not in "".join(line for line in router.dump() if line.startswith("-A LSMPY-C-"))


def write_like_vim(file: Path, text: str) -> None:
    """As vim does with backups: the old file aside, a new one in its place, the old one away."""
    backup = file.with_name(file.name + "~")
    if file.exists():
        file.rename(backup)
    file.write_text(text)
    backup.unlink(missing_ok=True)


def rename_over(file: Path, text: str) -> None:
    other = file.with_name(".new")
    other.write_text(text)
    other.replace(file)


def move_in(file: Path, text: str) -> None:
    other = file.parent.parent / "elsewhere"
    other.write_text(text)
    other.replace(file)


def append_slowly(file: Path, text: str) -> None:
    """As `echo > FILE` half-way: an empty file first."""
    with file.open("w") as opened:
        time.sleep(0.03)
        opened.write(text)


def hard_link(file: Path, text: str) -> None:
    other = file.with_name("other")
    other.write_text(text)
    file.unlink(missing_ok=True)
    os.link(other, file)
    other.unlink()


WRITERS: list[Callable[[Path, str], object]] = [
    Path.write_text,
    write_like_vim,
    rename_over,
    move_in,
    append_slowly,
    hard_link,
]


def test_every_way_of_writing_a_file_is_seen(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        file = router.states / "ISP2_state"
        for write in WRITERS:
            write(file, "down\n")
            await_verdict(watcher, DOWN)
            assert is_down(router)
            write(file, "up\n")
            await_verdict(watcher, UP)
            write(file, "down\n")
            await_verdict(watcher, DOWN)
            file.unlink()
            await_verdict(watcher, UP)
            assert not is_down(router)
        assert router.idle()


def test_a_file_that_its_writer_keeps_open_is_seen(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        with (router.states / "ISP2_state").open("w") as opened:
            for text, verdict in (("down\n", DOWN), ("up\n", UP), ("down\n", DOWN)):
                opened.truncate(0)
                opened.seek(0)
                opened.write(text)
                opened.flush()
                await_verdict(watcher, verdict)
        (router.states / "ISP2_state").unlink()
        await_verdict(watcher, UP)
        (router.states / "ISP2_state").mkdir()  # no text is not "up"
        await_verdict(watcher, DOWN)


def test_a_file_that_is_emptied_is_believed_when_its_writer_is_done(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        router.say("ISP2", "up")
        with router.watching() as watcher:
            await_verdict(watcher, UP)
            with (router.states / "ISP2_state").open("w") as opened:
                time.sleep(0.5)
                opened.write("up\n")
            time.sleep(0.5)
            assert not any("down ISP2" in line for line in watcher.rebuilds)
            (router.states / "ISP2_state").write_text("")
            await_verdict(watcher, DOWN)


def test_what_others_write_there_wakes_nobody(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        assert router.idle()
        looks = sum("iptables-save" in line for line in list(watcher.lines))
        with (router.states / "utmp").open("w") as opened:
            for number in range(500):
                opened.write(f"{number}\n")
                opened.flush()
        time.sleep(0.5)
        assert sum("iptables-save" in line for line in list(watcher.lines)) == looks


def test_the_force_file_wins(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        force = router.states / "ISP2_force"
        force.write_text("down\n")
        await_verdict(watcher, "up ISP1, down ISP2 (forced)")
        router.say("ISP2", "up")
        force.write_text("up\n")
        await_verdict(watcher, UP)
        router.say("ISP2", "down")
        router.say("ISP1", "down")
        await_verdict(watcher, "up ISP2, down ISP1")
        force.unlink()
        router.say("ISP1", "up")
        await_verdict(watcher, DOWN)


def test_a_directory_that_goes_and_comes_is_followed(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        router.say("ISP2", "down")
        await_verdict(watcher, DOWN)
        for _ in range(2):
            (router.states / "ISP2_state").rename(tmp_path / "kept-aside")
            await_verdict(watcher, UP)
            router.states.rmdir()
            seen = watcher.await_line("is gone; the router stays as it is")
            watcher.lines[:seen] = []
            router.states.mkdir()
            (tmp_path / "kept-aside").rename(router.states / "ISP2_state")
            await_verdict(watcher, DOWN)
        # Renamed away with all that is in it, it says nothing any more.
        router.states.rename(tmp_path / "other")
        watcher.await_line("is gone; the router stays as it is")
        assert is_down(router)
        router.states.mkdir()
        await_verdict(watcher, UP)


def test_a_directory_that_is_replaced_between_two_looks_is_followed(tmp_path: Path) -> None:
    """On most file systems the new one gets the old one's number."""
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        for said, verdict in (("down", DOWN), ("up", UP), ("down", DOWN)):
            shutil.rmtree(router.states)
            router.states.mkdir()
            router.say("ISP2", said)
            await_verdict(watcher, verdict)
            wait_until(router.idle, what="the router to be whole")
        assert watcher.running.alive


def test_a_hundred_changes_in_a_second_are_few_rebuilds_and_the_last_wins(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        for last, verdict in (("down", DOWN), ("up", UP)):
            before = len(watcher.rebuilds)
            began = time.monotonic()
            for number in range(100):
                wait_until(lambda: time.monotonic() > began + number / 100, what="its moment")  # noqa: B023
                router.say("ISP2", last if number % 2 else "up")
            router.say("ISP2", last)
            await_verdict(watcher, verdict)
            assert router.idle()
            assert len(watcher.rebuilds) - before <= 15


def test_what_changes_during_a_rebuild_is_not_lost(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:

        def looks() -> int:
            return sum("iptables-save" in line for line in list(watcher.lines))

        for _ in range(5):
            for first, last, verdict in (("down", "up", UP), ("up", "down", DOWN)):
                before = looks()
                router.say("ISP2", first)
                wait_until(lambda: looks() > before, what="a rebuild to begin")  # noqa: B023
                router.say("ISP2", last)
                await_verdict(watcher, verdict)
                assert is_down(router) == (last == "down")
                router.say("ISP2", last)


@pytest.mark.parametrize("others", [False, True])
def test_events_that_the_kernel_had_to_drop_lose_no_state(tmp_path: Path, others: bool) -> None:
    """The daemon is stopped while more happens than its queue holds, to its own files or to others only."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        os.kill(watcher.running.pid, signal.SIGSTOP)
        try:
            for number in range(limit // 2 + 500):
                if others:
                    (router.states / f"other{number % 2}").touch()
                    (router.states / f"other{number % 2}").unlink()
                else:
                    (router.states / "ISP2_state").write_text("up\n" if number % 2 else "strange\n")
            router.say("ISP2", "down")
        finally:
            os.kill(watcher.running.pid, signal.SIGCONT)
        await_verdict(watcher, DOWN, 20)  # sooner than the slow tick
        router.say("ISP2", "up")
        await_verdict(watcher, UP)


def test_a_hangup_reads_the_configuration_again_and_refuses_a_bad_one(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        before = router.dump()
        router.configure(configuration() + "\n[nonsense]\n")
        os.kill(watcher.running.pid, signal.SIGHUP)
        watcher.await_line("the new configuration is refused and the old one kept")
        router.say("ISP2", "down")
        await_verdict(watcher, DOWN)
        router.say("ISP2", "up")
        await_verdict(watcher, UP)
        assert router.dump() == before
        router.configure(configuration((3, 1)))
        os.kill(watcher.running.pid, signal.SIGHUP)
        watcher.await_line("configuration read again")
        wait_until(lambda: any("--every 4 " in line for line in router.dump()), what="the new weights")
        wait_until(router.idle, what="the router to be as the new configuration says")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_within_a_second_with_status_0(tmp_path: Path, busy: bool, number: signal.Signals) -> None:
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        if busy:
            router.say("ISP2", "down")
        os.kill(watcher.running.pid, number)
        took_s = wait_until(lambda: not watcher.running.alive, what="its end")
        assert took_s < 1
        watcher.running.wait()  # raises at any other status
        assert router.rebuild() is not None


def test_it_ends_while_another_rebuild_is_under_way(tmp_path: Path) -> None:
    """We are that rebuild, and do not end before it does."""
    with rig(tmp_path, configuration(), server=False) as router, router.watching() as watcher:
        before = router.dump()
        with apply.LOCK_PATH.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            router.say("ISP2", "down")
            watcher.await_line("waiting for another lsmpy-reconfig to end")
            os.kill(watcher.running.pid, signal.SIGTERM)
            wait_until(lambda: not watcher.running.alive, what="its end")
        watcher.running.wait()  # raises at any other status than 0
        assert router.dump() == before


def test_one_that_waits_for_its_turn_can_be_interrupted(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        router.rebuild()
        said: list[str] = []
        with apply.LOCK_PATH.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            running = router.lab.start(ROUTER, router.argv(), said.append)
            wait_until(lambda: said, what="it to wait")
            os.kill(running.pid, signal.SIGINT)
            with pytest.raises(CommandError) as caught:
                running.wait()
        assert caught.value.status == 130
        assert "interrupted" in said[-1]
        assert len(said) == 2


def test_a_hangup_while_it_starts_is_heard(tmp_path: Path) -> None:
    """Its configuration is a pipe, so that it is not further than where it reads it."""
    with rig(tmp_path, configuration(), server=False) as router:
        router.config.unlink()
        os.mkfifo(router.config)
        lines: list[str] = []
        watcher = Watcher(router.lab.start(ROUTER, router.argv("--watch"), lines.append), lines)
        try:
            with router.config.open("w") as pipe:  # returns as soon as it is open for reading too
                os.kill(watcher.running.pid, signal.SIGHUP)
                router.config.unlink()
                router.configure(configuration((3, 1)))
                pipe.write(configuration())
            watcher.await_line("configuration read again")
            assert any("--every 4 " in line for line in router.dump())
        finally:
            watcher.running.stop()


def test_a_first_rebuild_that_fails_ends_it_and_a_later_one_does_not(tmp_path: Path) -> None:
    with rig(tmp_path, configuration(), server=False) as router:
        router.shell("iptables -A FORWARD -s 10.1.2.3 -j ACCEPT\n")
        result = router.reconfig("--watch")
        assert result.status == 1
        assert "iptables holds 1 rules" in result.err
        router.shell("iptables -F FORWARD\n")
        with router.watching() as watcher:
            router.shell("iptables-legacy -t nat -A POSTROUTING -j ACCEPT\n")
            router.say("ISP2", "down")
            watcher.await_line("error: ")
            assert not any(DOWN in line for line in watcher.rebuilds)
            router.shell("iptables-legacy -t nat -F\n")  # of which nobody is told
            await_verdict(watcher, DOWN, 10)  # sooner than the slow tick
