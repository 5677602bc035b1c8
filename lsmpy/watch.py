"""Wakes the router when its world has changed: the state directory (watchdog) or the kernel's interfaces and routes."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyObserver

from lsmpy import LsmpyError, netlink
from lsmpy.netlink import Interest

log = logging.getLogger(__name__)

SETTLE_S = 0.1  # what comes this soon after a rebuild waits for the next, together with all that follows
TICK_S = 30.0  # how long a change that nobody has told of may last
_HEARTBEAT_S = 0.5
_EVENTS = [
    *(DirCreatedEvent, DirDeletedEvent),
    *(FileClosedEvent, FileCreatedEvent, FileDeletedEvent, FileModifiedEvent, FileMovedEvent),
]


class WatchError(LsmpyError):
    """A part of the watch has died, so that changes would go unseen."""


def _flood() -> int:
    """So many events of other files that the kernel may have dropped one of ours: watchdog does not tell of that.

    What is dropped is dropped while the queue is full, and a part of a full queue is still to come then (inotify(7)).
    """
    try:
        return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 8
    except (OSError, ValueError):
        return 1


def _is_empty(path: str) -> bool:
    try:
        return os.path.getsize(path) == 0
    except OSError:
        return False


class Watch(FileSystemEventHandler):
    """Yields whenever the router should be looked at again, at once after a first change, then settled.

    Changes are hints only: whoever is woken reads everything anew, so that none is lost however many there were.
    What it watches `aim` says; until then it can be woken and stopped.

    Attributes:
        directory: the state directory.
        names: the files in it that matter.
        interest: the interfaces and routing tables that matter.
        stopped: whether it was told to end.
    """

    def __init__(self) -> None:
        self.aim(Path(), (), Interest(frozenset(), frozenset()))
        self.stopped = False
        self._wake = threading.Event()
        self._wake.set()
        self._watched = ""
        self._alarm: float | None = None
        self._others, self._flood = 0, _flood()
        self._observer: InotifyObserver | None = None
        self._inode: tuple[int, int] | None = None

    def aim(self, directory: Path, names: Iterable[str], interest: Interest) -> None:
        """Watch these from now on."""
        self.directory, self.names, self.interest = directory, frozenset(names), interest

    def wake(self) -> None:
        """Make the watch yield soon; may be called from anywhere, a signal handler too."""
        self._wake.set()

    def wake_in(self, seconds: float | None) -> None:
        """Make the watch yield once after so many seconds; None for no such time."""
        self._alarm = None if seconds is None else time.monotonic() + seconds

    def stop(self) -> None:
        """Make the watch end."""
        self.stopped = True
        self._wake.set()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog's thread, which an exception would kill."""
        source, target = os.fsdecode(event.src_path), os.fsdecode(event.dest_path)
        self._others += 1
        ours = {os.path.basename(source), os.path.basename(target)} & self.names or source == self._watched
        if ours and isinstance(event, FileModifiedEvent) and _is_empty(source):
            return  # half-way: of what is written, or of the end, we are told as well
        if ours or self._others >= self._flood:
            self._others = 0
            self._wake.set()

    def wakes(self) -> Iterator[None]:
        """Yield once at the start, when something has changed, in the time asked for, and every `TICK_S`, until `stop`.

        While the state directory is gone nothing is yielded: its absence does not mean that every ISP is up.

        Raises:
            WatchError: a part of the watch has died.
        """
        routing, tables = netlink.open_socket(), netlink.open_tables_socket()
        kernel = {routing: False} | ({tables: True} if tables else {})  # each with whether others are let finish first
        listeners = [threading.Thread(target=self._listen, args=each, daemon=True) for each in kernel.items()]
        for listener in listeners:
            listener.start()
        try:
            self._follow()  # before the first look, so that nothing falls between
            looked = -TICK_S
            while not self.stopped:
                self._wake.wait(_HEARTBEAT_S)
                if not all(listener.is_alive() for listener in listeners):
                    raise WatchError("the kernel's notifications have stopped; the router stays as it is")
                self._follow()
                now = time.monotonic()
                due = self._wake.is_set() or now - looked >= TICK_S or (self._alarm is not None and now >= self._alarm)
                if self.stopped or not due or self._inode is None:
                    continue
                self._wake.clear()
                self._alarm = None
                looked = time.monotonic()
                yield
                self._settle()
        finally:
            for opened in kernel:
                opened.close()
            self._unfollow()

    def _listen(self, opened: socket.socket, patient: bool) -> None:
        netlink.listen(opened, lambda: self.interest, self.wake, patient)

    def _settle(self) -> None:
        """Let a burst come to its end before it is looked at; only being stopped cuts this short."""
        end = time.monotonic() + SETTLE_S
        while not self.stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.02))

    # -- the state directory, which may be deleted, renamed and made anew --------------------------------------------

    def _follow(self) -> None:
        """Keep an observer on the directory that is there now."""
        inode = self._current_inode()
        # A new directory may have the old one's number; but the observer ends with the old one.
        if inode == self._inode and (self._observer is None or self._is_sound(self._observer)):
            return
        self._unfollow()
        self._inode = inode
        if inode is None:
            log.warning("the state directory %s is gone; the router stays as it is until it is back", self.directory)
            return
        self._watched = os.path.realpath(self.directory)  # watchdog does not follow links, and /var/run is one
        try:
            observer = InotifyObserver()
            observer.schedule(self, self._watched, event_filter=_EVENTS)
            observer.start()
        except FileNotFoundError:
            self._inode = None  # gone again; the next heartbeat sees more
            return
        except OSError as error:
            limits = "fs.inotify.max_user_watches and fs.inotify.max_user_instances"
            raise WatchError(f"cannot watch {self.directory}: {error.strerror}; see {limits}") from error
        self._observer = observer
        self._wake.set()

    def _is_sound(self, observer: InotifyObserver) -> bool:
        return observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)

    def _unfollow(self) -> None:
        if self._observer:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def _current_inode(self) -> tuple[int, int] | None:
        try:
            found = self.directory.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
