"""LSM's own terms: connections, groups, all the settings of an lsm.conf, and what its numbers and addresses mean."""

from __future__ import annotations

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from msgspec import Struct

_PART = re.compile(r"0[xX][0-9a-fA-F]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9}")  # of an address in inet_aton(3)
# What C's atoi takes; it leaves the rest, and without any it is 0.
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)0*([0-9]+)")
_MOST_DIGITS = 20  # of a number, which is longer than any time by then

Address = IPv4Address | IPv6Address


class Connection(Struct, frozen=True, kw_only=True):
    """A `connection` block with what it has from `defaults`; LSM's own names, values and units.

    Attributes:
        eventscript: what is run at every change; an lsm.conf can name one.
        unknown_up_notify: None where the file does not say it. LSM tells a connection's first up whatever it says.
        status: where it begins: 0 down, 1 up, 2 unknown, 3 long_down.
        long_down_time: seconds; 0 for never.
        line: where it is in the file, `FILE:LINE`.
    """

    name: str = "defaults"
    checkip: str = "127.0.0.1"
    eventscript: tuple[str, ...] = ()
    notifyscript: str = ""
    unknown_up_notify: int | None = None
    max_packet_loss: int = 15
    max_successive_pkts_lost: int = 7
    min_packet_loss: int = 5
    min_successive_pkts_rcvd: int = 10
    interval_ms: int = 1000
    timeout_ms: int = 1000
    warn_email: str = "root"
    check_arp: int = 0
    sourceip: str = ""
    device: str = ""
    ttl: int = 0
    status: int = 2
    queue: str = ""
    long_down_time: int = 0
    long_down_email: str = ""
    long_down_eventscript: str = ""
    long_down_notifyscript: str = ""
    startup_acceleration: int = 0
    startup_burst_pkts: int = 0
    startup_burst_interval: int = 200
    line: str = ""

    @property
    def target(self) -> Address:
        """What `checkip` means."""
        return address(self.checkip) or ip_address(self.checkip)

    @property
    def source(self) -> Address | None:
        """What `sourceip` means; None if it is not given."""
        return address(self.sourceip)

    @property
    def interface(self) -> str:
        """The interface of `device`, which may have a label (eth0:1), or of an address that names one; or empty."""
        return (self.device or self.checkip.partition("%")[2]).partition(":")[0]


class Group(Struct, frozen=True, kw_only=True):
    """A `group` block: connections of which one (`logic` 0) or each (any other) must be up."""

    name: str = "defaults"
    eventscript: tuple[str, ...] = ()
    notifyscript: str = ""
    unknown_up_notify: int | None = None
    warn_email: str = "root"
    status: int = 2
    queue: str = ""
    device: str = ""
    logic: int = 0
    members: tuple[str, ...] = ()
    line: str = ""


class Settings(Struct, frozen=True):
    """A whole configuration.

    Attributes:
        flavour: `lsm`, or `foolsm` as it is called since 1.0.7.
        debug: how much is logged: from 6 statistics, from 8 events.
        warnings: what is taken otherwise than it is written, a line each.
    """

    flavour: str
    debug: int
    connections: tuple[Connection, ...]
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]

    @property
    def everybody(self) -> tuple[Connection | Group, ...]:
        """Connections and groups, in this order."""
        return (*self.connections, *self.groups)

    @property
    def named(self) -> dict[str, Connection | Group]:
        """Connections and groups by a name that is theirs alone: of those that share one, the first has it."""
        found: dict[str, Connection | Group] = {}
        for each in self.everybody:
            found[f"{each.name}#{len(found)}" if each.name in found else each.name] = each  # no name has a #
        return found

    @property
    def scripts(self) -> frozenset[str]:
        """All that may be run."""
        found = {script for each in self.everybody for script in (*each.eventscript, each.notifyscript)}
        for each in self.connections:
            found |= {each.long_down_eventscript, each.long_down_notifyscript}
        return frozenset(found - {""})


def number(text: str) -> int:
    """A number as C's atoi reads it, but with another limit: what is beyond `_MOST_DIGITS` digits does not count."""
    found = _NUMBER.match(text)
    return int(found[1] + found[2][:_MOST_DIGITS]) if found else 0


def address(text: str) -> Address | None:
    """What an address means to LSM; None if it is none.

    An IPv6 address may name its interface (fe80::1%eth0), and IPv4 has its old forms (127.1, 0x7f000001, octal numbers
    after a 0; inet_aton(3)).
    """
    with suppress(ValueError):
        return ip_address(text.partition("%")[0] if ":" in text else text)
    parts = text.split(".")
    if len(parts) > 4 or not all(_PART.fullmatch(each) for each in parts):
        return None
    *first, last = (int(each, 16 if "x" in each.lower() else 8 if each[0] == "0" else 10) for each in parts)
    if max(first, default=0) > 0xFF or last >= 256 ** (4 - len(first)):
        return None
    return IPv4Address(sum(each << 24 - 8 * place for place, each in enumerate(first)) + last)
