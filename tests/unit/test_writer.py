"""The state files that the prober writes, and an administrator beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmpy import state, writer


def files(directory: Path) -> tuple[str | None, str | None]:
    return state.read_text(state.state_path(directory, "ISP1")), state.read_text(state.record_path(directory, "ISP1"))


def settle(directory: Path, name: str, said: str | None) -> str | None:
    return writer.settle(directory, name, said, state.read_text(state.state_path(directory, name)))


def test_nothing_is_written_without_a_verdict(tmp_path: Path) -> None:
    assert settle(tmp_path, "ISP1", None) is None
    assert list(tmp_path.iterdir()) == []


def test_a_verdict_is_written_and_remembered(tmp_path: Path) -> None:
    for said in ("up", "down", "up"):
        assert settle(tmp_path, "ISP1", said) is None
        assert files(tmp_path) == (said, said)


def test_the_same_verdict_is_not_written_again(tmp_path: Path) -> None:
    settle(tmp_path, "ISP1", "up")
    before = state.state_path(tmp_path, "ISP1").stat()
    settle(tmp_path, "ISP1", "up")
    after = state.state_path(tmp_path, "ISP1").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_is_found_first_is_taken_over(tmp_path: Path) -> None:
    state.state_path(tmp_path, "ISP1").write_text("down\n")
    assert settle(tmp_path, "ISP1", None) is None
    assert files(tmp_path) == ("down", "down")
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")


def test_a_hand_holds_until_it_is_right_or_gone(tmp_path: Path) -> None:
    path = state.state_path(tmp_path, "ISP1")
    settle(tmp_path, "ISP1", "up")
    path.write_text("down\n")
    assert settle(tmp_path, "ISP1", "up") == "down"
    assert settle(tmp_path, "ISP1", None) == "down"
    assert files(tmp_path) == ("down", "up")
    assert settle(tmp_path, "ISP1", "down") is None
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")
    path.write_text("down\n")
    assert settle(tmp_path, "ISP1", "up") == "down"
    path.unlink()
    assert settle(tmp_path, "ISP1", "up") is None
    assert files(tmp_path) == ("up", "up")


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("then", ["up", "down"])
def test_a_crash_while_it_writes_does_not_lock_the_prober_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, then: str
) -> None:
    settle(tmp_path, "ISP1", "up")
    with monkeypatch.context() as broken:
        write, left = state.write, iter(range(after))

        def crash_after(path: Path, text: str) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(path, text)

        broken.setattr(state, "write", crash_after)
        with pytest.raises(KeyboardInterrupt):
            settle(tmp_path, "ISP1", "down")
    assert settle(tmp_path, "ISP1", None) is None
    assert settle(tmp_path, "ISP1", then) is None
    assert files(tmp_path) == (then, then)
    state.state_path(tmp_path, "ISP1").write_text("by hand\n")
    assert settle(tmp_path, "ISP1", then) == "by hand"
