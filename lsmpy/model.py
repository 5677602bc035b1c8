"""The configured router as data: ISPs, LANs, thresholds, options. Immutable, and checked before it is made."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

DEFAULT_STATE_DIR = "/var/run"
OWN_MASK = 0xFF00  # the bits of marks that are ours where others have marks too
AUTO, NONE = "auto", "none"  # an address or a gateway that the kernel tells; a link that has no gateway

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,20}\Z", description="1 to 20 letters, digits, '_' or '-'")]
# The kernel's own rule for interface names (dev_valid_name), less what would need quoting in iptables and sh, and with
# the ":" of aliases, of which more can be said.
Device = Annotated[str, Meta(pattern=r"^(?!\.\.?\Z)[A-Za-z0-9_.:@-]{1,15}\Z", description="an interface name")]
Percent = Annotated[int, Meta(ge=0, le=100, description="a whole number from 0 to 100")]
Count = Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")]
Milliseconds = Annotated[int, Meta(ge=10, le=3_600_000, description="milliseconds, from 10 to 3600000")]
Limit = Annotated[int, Meta(ge=0, le=3_600_000, description="milliseconds, from 0 (none) to 3600000")]
Wait = Annotated[int, Meta(ge=0, le=86_400, description="seconds, from 0 to 86400")]
Protocols = Annotated[
    tuple[Literal["tcp", "udp", "sctp", "icmp", "esp", "ah"], ...],
    Meta(description='"tcp", "udp", "sctp", "icmp", "esp", "ah" or a list of them'),
]
Ports = Annotated[
    tuple[int | str, ...], Meta(description='a destination port, a range such as "5060-5080" or a list of them')
]
Positive = Annotated[int, Meta(ge=1, le=0xFFFFFFFF, description="a whole number from 1 to 4294967295")]


class Probe(Struct, frozen=True, forbid_unknown_fields=True):
    """LSM's thresholds, in LSM's words; its window is the last 100 probes (README of LSM, "connection").

    A link goes down when its losses reach their `max` or its times pass theirs, and comes up when all are at or below
    their `min`.

    Attributes:
        max_rtt_ms, min_rtt_ms: limits on the smoothed round trip time (RFC 6298's SRTT); 0 for none.
        max_jitter_ms, min_jitter_ms: limits on its variation (RFC 6298's RTTVAR); 0 for none.
        hold_down_ms: how long an ISP that has gone down stays down at least, doubled each time; 0 for not at all.
        startup_acceleration: answers after which a link is up while nothing was lost yet; 0 for no such way.
        startup_burst_pkts, startup_burst_interval: so many probes after the first are sent so many ms apart.
    """

    interval_ms: Milliseconds = 1000
    timeout_ms: Milliseconds = 1000
    max_packet_loss: Percent = 15
    max_successive_pkts_lost: Count = 7
    min_packet_loss: Percent = 5
    min_successive_pkts_rcvd: Count = 10
    max_rtt_ms: Limit = 0
    min_rtt_ms: Limit = 0
    max_jitter_ms: Limit = 0
    min_jitter_ms: Limit = 0
    hold_down_ms: Limit = 0
    startup_acceleration: Percent = 0
    startup_burst_pkts: Percent = 0
    startup_burst_interval: Milliseconds = 200


class Check(Struct, frozen=True):
    """What is asked of whom to learn whether an ISP works.

    Attributes:
        kind: `echo` (ICMP, ICMPv6), `neighbour` (ARP, neighbour discovery), `tcp` (a connection) or `dns` (a query).
        address: who is asked; None for the gateway.
        port: of tcp and dns.
        name: what is asked of a DNS server.
    """

    kind: Literal["echo", "neighbour", "tcp", "dns"]
    address: Address | None = None
    port: int = 0
    name: str = ""


class Nat(Struct, frozen=True):
    """How the source address of what leaves by an ISP is translated, for each family."""

    ipv4: Literal["snat", "masquerade", "none"] = "snat"
    ipv6: Literal["none", "snat", "masquerade", "npt", "npt-stateless"] = "none"

    def kind(self, family: Family) -> str:
        """What `ipv4` or `ipv6` says."""
        return self.ipv4 if family == 4 else self.ipv6


class Addressed(Struct, frozen=True, kw_only=True):
    """Something with a name and addresses on one interface of the router."""

    name: Name
    interface: Device
    address: tuple[str, ...]

    def addresses(self, family: Family) -> tuple[Interface, ...]:
        """Its addresses of one family with their networks, in the order of the file."""
        return _interfaces(self.address, family)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that it has addresses of, or may have."""
        return tuple(family for family in FAMILIES if AUTO in self.address or self.addresses(family))


class Isp(Addressed, frozen=True, kw_only=True):
    """One provider: interface, addresses (the first of a family is the SNAT address), gateway and share."""

    gateway: tuple[str, ...]
    check: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    quorum: Positive = 1
    mark: Positive = 0
    table: int | str = 0
    weight: Positive = 1
    tier: Positive = 1
    clamp_mss: bool = False
    probe: Probe = Probe()
    nat: Nat = Nat()

    def next_hop(self, family: Family) -> Address | None:
        """The gateway of one family; 0.0.0.0 or :: where packets go straight into the interface, None without any."""
        return _next_hop(self.gateway, family)

    @property
    def checks(self) -> tuple[Check, ...]:
        """What `check` says."""
        return tuple(map(parse_check, self.check))

    @property
    def follows(self) -> bool:
        """Whether an address or a gateway is what the kernel has at the moment."""
        return AUTO in (*self.address, *self.gateway)

    def prefixes(self, family: Family) -> tuple[Network, ...]:
        """The networks of one family that it routes to us."""
        return _prefixes(self.prefix) if family == 6 else ()

    def networks(self, family: Family) -> tuple[Network, ...]:
        """All whose addresses are its customers': that of each address of ours, and what it routes to us."""
        return (*(each.network for each in self.addresses(family)), *self.prefixes(family))

    def carries(self, family: Family) -> bool:
        """Whether this ISP has an address and a gateway of the family, or may have."""
        return family in self.families and (AUTO in self.gateway or self.next_hop(family) is not None)


class Lan(Addressed, frozen=True, kw_only=True):
    """One network whose new connections are balanced."""


class Policy(Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """Traffic that is not balanced: new connections of LANs that match all that is given, in lists any of it.

    Attributes:
        to, from_, lan, protocol, ports: what matches; empty for any.
        use: names of ISPs, of which the first that is up is used.
        otherwise: what becomes of the traffic while none of them is: balanced, or the sender is told.
    """

    name: Name
    use: tuple[str, ...]
    to: tuple[str, ...] = ()
    from_: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()
    protocol: Protocols = ()
    ports: Ports = ()
    otherwise: Literal["balance", "unreachable"] = "balance"

    def targets(self, family: Family) -> tuple[Network, ...]:
        """The networks of one family that it is about; those of `to` without overlaps, or everything."""
        return _networks(self.to, family)

    def sources(self, family: Family) -> tuple[Network, ...]:
        """The same for `from`."""
        return _networks(self.from_, family)

    @property
    def port_ranges(self) -> tuple[tuple[int, int], ...]:
        """First and last of each range of `ports`, in order; those that overlap are one."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(map(parse_ports, self.ports)):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = merged[-1][0], max(last, merged[-1][1])
            else:
                merged.append((first, last))
        return tuple(merged)


class Options(Struct, frozen=True):
    """The `[router]` table.

    Attributes:
        flush_conntrack: whether the connections of an ISP that goes down are forgotten.
        failback: whether connections on a worse tier stay when a better one returns, or are forgotten as well.
        failback_after_s: how long a returned ISP must have been up before it is used again.
    """

    flush: Literal["all", "own"] = "all"
    balance: Literal["nth", "random", "hash"] = "nth"
    local_traffic: Literal["balance", "main"] = "balance"
    when_all_down: Literal["all", "flush", "unreachable"] = "all"
    flush_conntrack: bool = True
    failback: Literal["drain", "move"] = "drain"
    failback_after_s: Wait = 0
    iptables: Literal["auto", "nft", "legacy"] = "auto"
    mark_mask: Positive = 0xFFFFFFFF  # with "own" `OWN_MASK`, where nothing else is said

    @property
    def beside_others(self) -> bool:
        """Whether others' chains, rules and marks are to be left alone."""
        return self.flush == "own"


class Rules(Struct, frozen=True):
    """Files in iptables-save format whose rules are part of every rebuild, and programs to be run after one."""

    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def files(self, family: Family) -> tuple[Path, ...]:
        """The rule files of one family."""
        return tuple(Path(name) for name in (self.ipv4 if family == 4 else self.ipv6))


class Events(Struct, frozen=True):
    """Programs that are run at every change of an ISP, with LSM's arguments."""

    script: tuple[str, ...] = ()


class Router(Struct, frozen=True, kw_only=True):
    """The whole configuration, checked."""

    isps: tuple[Isp, ...]
    lans: tuple[Lan, ...]
    state_dir: str = DEFAULT_STATE_DIR
    options: Options = Options()
    rules: Rules = Rules()
    events: Events = Events()
    policies: tuple[Policy, ...] = ()
    warnings: tuple[str, ...] = ()
    without: tuple[Family, ...] = ()  # that the machine does not have

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that some ISP carries or some rules file is about; the others are never touched.

        With "auto" both: rules of others in a family are found when lsmpy is set up, and not when the family comes.
        """
        known = (f for f in FAMILIES if f not in self.without)
        return tuple(f for f in known if self.rules.files(f) or any(isp.carries(f) for isp in self.isps))

    def mark_value(self, isp: Isp) -> int:
        """The bits of `isp`'s mark where `mark_mask` puts them."""
        return isp.mark * lowest_bit(self.options.mark_mask)

    @property
    def refusal(self) -> int:
        """The mark of what no ISP shall carry, all bits of `mark_mask`; 0 if no policy would have anything refused."""
        refuses = any(policy.otherwise == "unreachable" for policy in self.policies)
        return self.options.mark_mask if refuses else 0

    @property
    def others_bits(self) -> int:
        """The bits within `mark_mask` that no ISP's mark needs; whatever has one of them is another program's mark.

        So the mark of a VPN that lies partly within our bits (wg-quick's 0xca6c) is told from ours, where others' marks
        are to live on.
        """
        mask = self.options.mark_mask
        needed = (1 << max(isp.mark for isp in self.isps).bit_length()) - 1
        return mask & ~(needed * lowest_bit(mask)) if self.options.beside_others else 0


# The next hop where packets go straight into the interface.
NOWHERE: Mapping[Family, Address] = {4: ipaddress.IPv4Address(0), 6: ipaddress.IPv6Address(0)}


# A rebuild asks for these again and again, and to parse them takes longer than the rest of its thinking.
@lru_cache(maxsize=1024)
def _interfaces(texts: tuple[str, ...], family: Family) -> tuple[Interface, ...]:
    known = (each for each in texts if each != AUTO)
    return tuple(each for each in map(ipaddress.ip_interface, known) if each.version == family)


@lru_cache(maxsize=1024)
def _prefixes(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


def _networks(texts: tuple[str, ...], family: Family) -> tuple[Network, ...]:
    if not texts:
        return (ipaddress.ip_network("0.0.0.0/0" if family == 4 else "::/0"),)
    networks = [each for each in map(ipaddress.ip_network, texts) if each.version == family]
    return tuple(ipaddress.collapse_addresses(networks))  # type: ignore[type-var]  # all of one family


@lru_cache(maxsize=1024)
def _next_hop(texts: tuple[str, ...], family: Family) -> Address | None:
    if NONE in texts:
        return NOWHERE[family]
    known = (each for each in texts if each != AUTO)
    return next((each for each in map(ipaddress.ip_address, known) if each.version == family), None)


@lru_cache(maxsize=1024)
def parse_check(text: str) -> Check:
    """The meaning of one text of `check`.

    Raises:
        ValueError: it has none; the message says what would.
    """
    if text in ("gateway", "arp"):
        return Check("echo" if text == "gateway" else "neighbour")
    if "%" in text:
        raise ValueError(text)  # an address with a zone; the interface says it already
    if "://" not in text:
        return Check("echo", ipaddress.ip_address(text))
    url = urlsplit(text)
    address, port = ipaddress.ip_address(url.hostname or ""), url.port
    if url.scheme == "tcp" and port and not url.path.strip("/"):
        return Check("tcp", address, port)
    name = url.path.strip("/")
    labels = name.split(".")
    if url.scheme == "dns" and len(name) <= 253 and all(0 < len(each) <= 63 and each.isascii() for each in labels):
        return Check("dns", address, port or 53, name)
    raise ValueError(text)


def parse_ports(item: int | str) -> tuple[int, int]:
    """First and last of one item of `ports`.

    Raises:
        ValueError: it is neither a port nor a range of them.
    """
    parts = str(item).split("-")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(item)
    ports = int(parts[0]), int(parts[-1])
    if not 1 <= ports[0] <= ports[1] <= 0xFFFF:
        raise ValueError(item)
    return ports


@lru_cache(maxsize=1024)
def host(address: Interface | Address) -> str:
    """The address alone, in the kernel's words."""
    return str(address).partition("/")[0]


def lowest_bit(mask: int) -> int:
    """The value of the lowest bit that is set in `mask`."""
    return mask & -mask
