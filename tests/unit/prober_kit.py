"""A world for the prober without a network: a clock that only moves when somebody waits, and links that answer."""

from __future__ import annotations

import heapq
import selectors
import signal
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from itertools import count
from pathlib import Path

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6

from lsmpy import dial, links, model, netlink, port, probe, prober, wire
from lsmpy.links import Link, Snapshot

TOML = """
state_dir = "{directory}"
[probe]
interval_ms = 10
timeout_ms = 20
max_packet_loss = 15
max_successive_pkts_lost = 3
min_packet_loss = 5
min_successive_pkts_rcvd = 2
[[isp]]
name = "ISP1"
interface = "wan1"
address = ["192.0.2.1/24", "2001:db8:1::1/64"]
gateway = ["192.0.2.2", "2001:db8:1::2"]
check = {check}
"""

Address = IPv4Address | IPv6Address

MS, S = 1_000_000, 1_000_000_000
OUR_MAC, GATEWAY_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
NEW_LINK, NEW_ROUTE = 16, 24  # RTM_…
_EPOCH_NS = 1_700_000_000 * S  # what the clock of the time stamps says when the world begins
_SEND_QUEUE_NS = 3_000  # from sending to leaving


class World:
    """Time, and what the kernel has.

    Attributes:
        now_ns: the clock that nobody sets.
        tick_ns: how far it goes on whenever somebody looks at it: whoever thinks takes his time.
        answer: after how many nanoseconds an echo request to an address by an interface is answered; None for never.
        ports: every port that was opened.
        changes: when somebody tells the kernel of something new; the prober hears of it, and looks.
        sleeps: from when to when the machine hears nothing; True if what arrives meanwhile waits.
    """

    CLOCK_BOOTTIME = 7  # of the module time, in whose place this stands

    def __init__(self, snapshot: Snapshot) -> None:
        self.now_ns, self.tick_ns = 100 * S, 1_000
        self.answer: Callable[[str, Address], int | None] = lambda *_: MS
        self.snapshot = snapshot
        self.ports: list[FakePort] = []
        self.changes: list[tuple[int, int, Snapshot, int]] = []
        self.sleeps: list[tuple[int, int, bool]] = []
        self._turns = count()
        self._set_at, self._set_to = [0], [_EPOCH_NS]

    # -- in the place of the module time -----------------------------------------------------------

    def clock_gettime_ns(self, _: int) -> int:
        self.now_ns += self.tick_ns
        return self.now_ns

    def time_ns(self) -> int:
        return self.stamp(self.now_ns)

    def time(self) -> float:
        return self.stamp(self.now_ns) / S

    def sleep(self, seconds: float) -> None:
        self.wait_until(self.now_ns + round(seconds * S))

    # -- for tests ---------------------------------------------------------------------------------

    def set_clock(self, by_ns: int, at_ns: int = 0) -> None:
        """Somebody sets the clock of the time stamps, now or later but after all others."""
        self._set_at.append(at_ns or self.now_ns)
        self._set_to.append(self._set_to[-1] + by_ns)

    def clock_sets(self, after_ns: int, until_ns: int) -> list[int]:
        """By how much it was set between the two times."""
        first, end = bisect_right(self._set_at, after_ns), bisect_right(self._set_at, until_ns)
        return [self._set_to[place] - self._set_to[place - 1] for place in range(first, end)]

    def stamp(self, at_ns: int) -> int:
        """What the clock of the time stamps says then."""
        return at_ns + self._set_to[bisect_right(self._set_at, at_ns) - 1]

    def wait_until(self, at_ns: int) -> None:
        """Let time pass, and more of it if the machine sleeps meanwhile."""
        self.now_ns = max(self.now_ns, at_ns)
        while self.sleeps and self.sleeps[0][0] <= self.now_ns:
            from_ns, until_ns, waits = self.sleeps.pop(0)
            self.now_ns = max(self.now_ns, until_ns)
            for each in self.ports if not waits else ():
                each.miss(from_ns, until_ns)

    def say(self, snapshot: Snapshot, at_ns: int = 0, kind: int = NEW_LINK) -> None:
        """The kernel has this, now or later, and tells of it by a message of that kind."""
        heapq.heappush(self.changes, (at_ns or self.now_ns, next(self._turns), snapshot, kind))


class FakePort(port.Port):
    """A port whose packets go to the world, byte by byte.

    Attributes:
        gateway_mac, gateway_alive: who answers questions for a gateway, and whether.
        alive: whether anybody answers probes.
        busy_ns: how long it takes to send something.
        questions, requests, macs: what was sent: for gateways, of probes, and whereto.
        truth: of each target's probe, when it left and when its answer arrives.
        bound: interface, type and gateways of every `bind`.
        lost: whether the interface has gone since the last one.
    """

    def __init__(self, world: World) -> None:
        self.problem = ""
        self.ident = 4711 + len(world.ports)
        self._nonce = b"abc%c" % (65 + len(world.ports))
        self._interface, self._kind = "", 0
        self._world = world
        self.gateway_mac: bytes = GATEWAY_MAC
        self.alive = self.gateway_alive = True
        self.busy_ns = 0
        self.closed = self.lost = False
        self.questions: list[bytes] = []
        self.requests: list[bytes] = []
        self.macs: list[bytes] = []
        self.truth: dict[tuple[int, int], tuple[int, int | None]] = {}
        self.bound: list[tuple[str, int, tuple[Address, ...]]] = []
        self._arriving: list[tuple[int, int, bytes, int]] = []
        self._left: list[tuple[bytes, int]] = []
        self._turn = 0
        world.ports.append(self)

    def fileno(self) -> int:
        return 1000 + self._world.ports.index(self)

    def close(self) -> None:
        self.closed = True

    def bind(self, interface: str, kind: int, hops: tuple[Address, ...]) -> None:
        self._interface, self._kind, self.problem, self.lost = interface, kind, "", False
        self.bound.append((interface, kind, hops))

    @property
    def is_bound(self) -> bool:
        return not self.lost

    def bring(self, packet: bytes, protocol: int = wire.ETH_IPV4, after_ns: int = 0) -> None:
        """A packet arrives."""
        self._turn += 1
        heapq.heappush(self._arriving, (self._world.now_ns + after_ns, self._turn, packet, protocol))

    def miss(self, from_ns: int, until_ns: int) -> None:
        """Nobody was there when this arrived."""
        self._arriving = [each for each in self._arriving if not from_ns <= each[0] <= until_ns]
        heapq.heapify(self._arriving)
        for probe_, (left_ns, at_ns) in self.truth.items():
            if at_ns is not None and from_ns <= at_ns <= until_ns:
                self.truth[probe_] = left_ns, None

    def ready_ns(self) -> int | None:
        """When there is something to hear."""
        return 0 if self._left else self._arriving[0][0] if self._arriving else None

    def _send(self, packet: bytes, protocol: int, mac: bytes) -> None:
        self._deliver(packet, protocol, mac)
        self._world.now_ns += self.busy_ns

    def _deliver(self, packet: bytes, protocol: int, mac: bytes) -> None:
        now_ns = self._world.now_ns
        if protocol == wire.ETH_ARP or packet[40:41] == b"\x87":
            self.questions.append(packet)
            if self.gateway_alive:
                self.bring(*neighbour(packet, protocol, self.gateway_mac), after_ns=200_000)
            return
        left_ns = now_ns + _SEND_QUEUE_NS
        self._left.append((packet, self._world.stamp(left_ns)))
        four = protocol == wire.ETH_IPV4
        target = ip_address(packet[16:20] if four else packet[24:40])
        delay_ns = self._world.answer(self._interface, target)
        if not self.alive or (mac and mac != self.gateway_mac):
            delay_ns = None
        number, counter = struct.unpack_from("!IQ", packet, (28 if four else 48) + 4)
        at_ns = None if delay_ns is None else left_ns + delay_ns
        self.truth[number, counter] = left_ns, at_ns
        self.requests.append(packet)
        self.macs.append(mac)
        if delay_ns is not None:
            self.bring(reply(packet), protocol, _SEND_QUEUE_NS + delay_ns)

    def _take_error(self) -> None:
        pass

    def _stamps(self) -> Iterator[tuple[bytes, int]]:
        left, self._left = self._left, []
        yield from left

    def _frames(self) -> Iterator[tuple[bytes, int, int]]:
        while self._arriving and self._arriving[0][0] <= self._world.now_ns:
            at_ns, _, packet, protocol = heapq.heappop(self._arriving)
            yield packet, protocol, self._world.stamp(at_ns)


def reply(request: bytes) -> bytes:
    """What a host answers to an echo request; nobody here looks at checksums."""
    if request[0] >> 4 == 4:
        return request[:12] + request[16:20] + request[12:16] + b"\0" + request[21:]
    return request[:8] + request[24:40] + request[8:24] + b"\x81" + request[41:]


def neighbour(question: bytes, protocol: int, mac: bytes) -> tuple[bytes, int]:
    """What a gateway answers to a question for it."""
    if protocol == wire.ETH_ARP:
        answer = question[:7] + b"\x02" + mac + question[24:28] + question[8:18]
        return answer, protocol
    gateway, source = str(ip_address(question[48:64])), str(ip_address(question[8:24]))
    packet = IPv6(src=gateway, dst=source, hlim=255) / ICMPv6ND_NA(tgt=gateway, S=1)
    return bytes(packet / ICMPv6NDOptDstLLAddr(lladdr=mac.hex(":"))), protocol


class Kernel:
    """The socket on which the kernel tells that something has changed."""

    def __init__(self, world: World) -> None:
        self._world = world

    def setblocking(self, _: bool) -> None:
        pass

    def close(self) -> None:
        pass

    def ready_ns(self) -> int | None:
        return self._world.changes[0][0] if self._world.changes else None

    def recv(self, _: int) -> bytes:
        if not self._world.changes or self._world.changes[0][0] > self._world.now_ns:
            raise BlockingIOError
        _, _, self._world.snapshot, kind = heapq.heappop(self._world.changes)
        return netlink.HEADER.pack(netlink.HEADER.size, kind, 0, 0, 0)


class Signals:
    """The socket of signals: SIGTERM at a time, or whatever is put there."""

    def __init__(self, at_ns: int, number: int = signal.SIGTERM) -> None:
        self._at_ns, self._number = at_ns, number

    def ready_ns(self) -> int | None:
        return self._at_ns

    def recv(self, _: int) -> bytes:
        return bytes([self._number])


class Selector(selectors.BaseSelector):
    """Waits in the world's time; what is registered says when it is ready by `ready_ns`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, 0, events, data)  # type: ignore[arg-type]
        self._keys[id(fileobj)] = key
        return key

    def modify(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def unregister(self, fileobj: object) -> selectors.SelectorKey:
        return self._keys.pop(id(fileobj))

    def get_map(self) -> dict[object, selectors.SelectorKey]:  # type: ignore[override]
        return {key.fileobj: key for key in self._keys.values()}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None
        when = [at for key in self._keys.values() if (at := key.fileobj.ready_ns()) is not None]  # type: ignore
        until_ns = self._world.now_ns + round(timeout * S)
        if timeout > 0:
            self._world.wait_until(min([until_ns, *when]))
        now_ns = self._world.now_ns
        ready = [(key, key.fileobj.ready_ns()) for key in self._keys.values()]  # type: ignore
        return [(key, key.events) for key, at in ready if at is not None and at <= now_ns]


def snapshot(*links_: Link, addresses: Mapping[int, tuple[str, ...]] | None = None, **hops: str | None) -> Snapshot:
    """What the kernel has: these interfaces with these addresses, and default routes as wan1_4 = "192.0.2.2"."""
    index = {link.name: link.index for link in links_}
    told = {(index[key.split("_")[0]], int(key.split("_")[1])): hop for key, hop in hops.items()}
    return Snapshot(
        {link.name: link for link in links_},
        {number: tuple(ip_interface(each).ip for each in texts) for number, texts in (addresses or {}).items()},
        {key: ip_address(hop) if hop else None for key, hop in told.items()},
        {number: tuple(ip_interface(each).network for each in texts) for number, texts in (addresses or {}).items()},
    )


def ethernet(name: str, index: int, running: bool = True, mac: bytes = OUR_MAC) -> Link:
    """An interface that is up."""
    return Link(name, index, 1, True, running, True, mac)


def begin(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Put the world in the place of the kernel's."""
    for module in (prober, probe):
        monkeypatch.setattr(module, "time", world)
    monkeypatch.setattr(port, "Port", lambda: FakePort(world))
    monkeypatch.setattr(links, "look", lambda _: world.snapshot)
    monkeypatch.setattr(netlink, "open_socket", lambda _: Kernel(world))
    monkeypatch.setattr(selectors, "DefaultSelector", lambda: Selector(world))


def run(daemon: probe.Daemon, world: World, seconds: float, once: bool = False) -> None:
    """Let the daemon run for a while."""
    daemon._caught = b""
    signals = Signals(world.now_ns + round(seconds * S))
    daemon.run(signals, once)  # type: ignore[arg-type]
    for selector in (daemon._selector, daemon._urgent):
        selector.unregister(signals)  # type: ignore[arg-type]


def daemon_of(path: Path, text: str) -> probe.Daemon:
    """The daemon of a configuration, whose state directory is that of the file."""
    path.write_text(text)
    return probe.Daemon(path, path.parent)


class FakeCall:
    """A call that ends as told."""

    made: list[FakeCall]
    cannot = ""
    end: dial.Answer | None = dial.Answer(3 * MS)

    def __init__(self, check: model.Check, address: object, path: object, on_link: bool) -> None:
        if FakeCall.cannot:
            raise dial.CannotTestError(FakeCall.cannot)
        self.check, self.address, self.path, self.on_link = check, address, path, on_link
        self.awaits_reading = check.kind == "dns"
        self.closed = False
        FakeCall.made.append(self)

    def ready_ns(self) -> int | None:
        return 0 if self.end else None

    def outcome(self) -> dial.Answer | None:
        return self.end

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def fake_calls(monkeypatch: pytest.MonkeyPatch) -> type[FakeCall]:
    """Let every call be one that ends as told."""
    monkeypatch.setattr(dial, "Call", FakeCall)
    monkeypatch.setattr(FakeCall, "made", [], raising=False)
    monkeypatch.setattr(FakeCall, "cannot", "")
    monkeypatch.setattr(FakeCall, "end", dial.Answer(3 * MS))
    return FakeCall
