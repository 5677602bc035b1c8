"""Where on the link a gateway is: what was heard of it, and asking again before that is too old."""

from __future__ import annotations

from dataclasses import dataclass

from lsmpy import wire
from lsmpy.model import Address
from lsmpy.port import Port
from lsmpy.uplink import Path

_S = 1_000_000_000  # nanoseconds
_REFRESH_NS = 30 * _S  # how old a hardware address may be while probes are answered
_ASK_AGAIN_NS = _S // 4  # how often it is asked for while they are not
HEAD_START_NS = _S // 20  # for a gateway to say where it is, before the first probe


@dataclass(slots=True)
class Hop:
    """Where a gateway (or a target without one) was last heard, which holds until something newer is.

    Attributes:
        since_ns: since when it is looked for.
    """

    address: Address
    since_ns: int
    mac: bytes = b""
    asked_ns: int = 0
    asked_from: bytes = b""  # our hardware address, which the question also tells

    def may_answer_yet(self, now_ns: int) -> bool:
        """Whether it has just been asked for, for the first time."""
        return not self.mac and now_ns < self.since_ns + HEAD_START_NS


class Neighbours:
    """Those whom frames of one port go to."""

    def __init__(self, port: Port) -> None:
        """Ask by this port."""
        self._port = port
        self._hops: dict[Address, Hop] = {}

    def at(self, address: Address, now_ns: int) -> Hop:
        """Whoever has this address."""
        return self._hops.setdefault(address, Hop(address, now_ns))

    def heard(self, address: Address, mac: bytes) -> None:
        """Somebody has said where he is."""
        if hop := self._hops.get(address):
            hop.mac = mac

    def look_for(self, hop: Hop, path: Path, now_ns: int, unanswered: bool) -> None:
        """Ask where it is if that is not known well enough; less does while probes are `unanswered`."""
        patience_ns = _ASK_AGAIN_NS if unanswered or not hop.mac else _REFRESH_NS
        if now_ns >= hop.asked_ns + patience_ns or hop.asked_from != path.link.mac:
            self.ask(hop, path, now_ns)

    def ask(self, hop: Hop, path: Path, now_ns: int) -> None:
        """Ask where it is."""
        self._port.ask(wire.solicitation(path.link.mac, path.source, hop.address))
        hop.asked_ns, hop.asked_from = now_ns, path.link.mac
