"""What wakes the router: a directory under another's number, an observer that cannot be had, a listener that ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsmpy import netlink, watch
from lsmpy.lab import wait_until
from lsmpy.netlink import Interest
from lsmpy.watch import Watch, WatchError


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watch]:
    (tmp_path / "states").mkdir()
    made = Watch()
    made.aim(tmp_path / "states", ["ISP1_state"], Interest(frozenset(), frozenset()))
    yield made
    made._unfollow()


def test_a_new_directory_with_the_number_of_the_old_one_is_followed(
    watching: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_current_inode", lambda: (1, 1))
    watching._follow()
    observer = watching._observer
    assert observer
    shutil.rmtree(watching.directory)
    watching.directory.mkdir()
    wait_until(lambda: not watching._is_sound(observer), what="the observer of the old one to end")
    watching._wake.clear()
    watching._follow()
    assert watching._wake.is_set()  # what was written meanwhile is seen
    watching._wake.clear()
    (watching.directory / "ISP1_state").write_text("down\n")
    wait_until(watching._wake.is_set, what="the new one's news")


def test_an_observer_that_cannot_be_had_is_told_with_what_to_do(
    watching: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(watch, "InotifyObserver", none_left)
    with pytest.raises(WatchError, match=r"Too many open files; see fs\.inotify\.max_user_watches"):
        watching._follow()


def test_it_does_not_live_on_deaf_to_the_kernel(watching: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "listen", lambda *_: None)
    with pytest.raises(WatchError, match="the kernel's notifications have stopped; the router stays as it is"):
        list(watching.wakes())
