"""State files: what their texts mean, whatever lies there, and writing that no reader sees half done."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import state
from lsmpy.state import StateError, Status


@pytest.mark.parametrize("text", [None, "up"])
def test_no_file_and_up_are_up(text: str | None) -> None:
    assert state.judge(text) == Status(True, text)


@pytest.mark.parametrize("text", ["down", "long_down", "unknown", "long_down_to_up", "long_down_to_down"])
def test_words_of_lsm_other_than_up_are_down_without_a_warning(text: str) -> None:
    assert state.judge(text) == Status(False, text)


@pytest.mark.parametrize("text", ["", "Up", "UP", " up", "up and running", "true", "1", "\x00"])
def test_anything_else_is_down_with_a_warning_that_shows_it(text: str) -> None:
    status = state.judge(text)
    assert not status.up
    assert repr(text) in status.warning


def test_a_long_text_is_shown_short() -> None:
    assert len(state.judge("x" * 4000).warning) < 150


@given(st.text())
def test_only_up_is_up(text: str) -> None:
    assert state.judge(text).up == (text == "up")


@pytest.mark.parametrize(("force", "up"), [("up", True), ("down", False)])
@pytest.mark.parametrize("text", [None, "up", "down", "", "rubbish"])
def test_force_overrides_whatever_the_file_says(text: str | None, force: str, up: bool) -> None:
    status = state.judge(text, force)
    assert (status.up, status.force, status.text) == (up, force, text)


@pytest.mark.parametrize("force", ["", "auto", "UP"])
def test_a_force_file_that_says_neither_is_ignored_and_warned_of(force: str) -> None:
    status = state.judge("up", force)
    assert status.up
    assert status.force is None
    assert "force file" in status.warning


@pytest.mark.parametrize("content", [b"up", b"up\n", b"up \t\r\n\n"])
def test_white_space_at_the_end_is_stripped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ISP1_state").write_bytes(content)
    assert state.read(tmp_path, "ISP1") == Status(True, "up")


def test_both_files_of_an_isp_are_read_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").write_text("up\n")
    (tmp_path / "ISP1_force").write_text("down\n")
    (tmp_path / "ISP2_state").write_text("down\n")
    assert state.read(tmp_path, "ISP1") == Status(False, "up", "down")
    assert state.read(tmp_path, "ISP3") == Status(True)


def test_binary_rubbish_is_down_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").write_bytes(b"\xff\xfe\x00up\n")
    status = state.read(tmp_path, "ISP1")
    assert not status.up
    assert status.warning


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").write_bytes(b"x" * 10_000_000)
    text = state.read_text(tmp_path / "ISP1_state")
    assert text is not None
    assert len(text) < 10_000


def test_an_empty_file_is_read_again_before_it_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ISP1_state"
    path.touch()
    # The other half of `echo up > FILE` comes while the reader waits.
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text("up\n"))
    assert state.read(tmp_path, "ISP1").up


def test_a_file_that_stays_empty_is_down(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").touch()
    assert not state.read(tmp_path, "ISP1").up


def make_directory(path: Path) -> None:
    path.mkdir()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_directory, make_pipe, make_loop])
def test_what_is_no_file_is_down_and_neither_blocks_nor_leaks(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "ISP1_state")
    before = os.listdir("/proc/self/fd")
    status = state.read(tmp_path, "ISP1")
    assert not status.up
    assert status.warning
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_pipe_that_is_held_open_and_silent_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "ISP1_state"
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    try:
        assert not state.read(tmp_path, "ISP1").up
    finally:
        os.close(holder)


def test_a_dangling_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "ISP1_state").symlink_to(tmp_path / "nowhere")
    assert state.read(tmp_path, "ISP1").up


def test_a_written_file_is_a_new_one_with_nothing_left_beside_it(tmp_path: Path) -> None:
    path = state.state_path(tmp_path, "ISP1")
    state.write(path, "up")
    first = path.stat()
    with path.open() as opened:
        state.write(path, "down")
        assert opened.read() == "up\n"
    assert path.read_text() == "down\n"
    assert path.stat().st_ino != first.st_ino
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["ISP1_state"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = state.state_path(tmp_path, "ISP1")
    state.write(path, "up")
    written = threading.Event()

    def write_often() -> None:
        for _ in range(300):
            state.write(path, "long_down")
            state.write(path, "up")
        written.set()

    writer = threading.Thread(target=write_often)
    writer.start()
    seen = set()
    while not written.is_set():
        seen.add(path.read_bytes())
    writer.join()
    assert seen <= {b"up\n", b"long_down\n"}


@given(word=st.sampled_from([*state.FORCES, *sorted(state.LSM_WORDS)]))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    path = tmp_path_factory.getbasetemp() / "ISP1_state"
    state.write(path, word)
    assert state.read_text(path) == word


def test_where_nothing_can_be_written_the_message_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"cannot write .*/missing/ISP1_state: No such file.*unchanged; check that"):
        state.write(state.state_path(tmp_path / "missing", "ISP1"), "up")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    path = state.state_path(tmp_path, "ISP1")
    path.mkdir()
    with pytest.raises(StateError, match="Is a directory"):
        state.write(path, "up")
    assert os.listdir(tmp_path) == ["ISP1_state"]


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    path = state.force_path(tmp_path, "ISP1")
    state.write(path, "down")
    state.remove(path)
    state.remove(path)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_removed_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot remove"):
        state.remove(tmp_path)


def test_a_missing_directory_is_not_every_isp_up(tmp_path: Path) -> None:
    state.require_directory(tmp_path)
    with pytest.raises(StateError, match=r"does not exist. Nothing was changed. Create it, or name the right one"):
        state.require_directory(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(StateError):
        state.require_directory(tmp_path / "file")


def test_the_probers_record_is_kept_apart(tmp_path: Path) -> None:
    assert state.record_path(tmp_path, "ISP1").parent == tmp_path / "lsmpy"
