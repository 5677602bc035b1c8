"""The configuration: one TOML file in, one immutable `Router` out, or every mistake in it at once."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from lsmpy import LsmpyError, shares

DEFAULT_PATH = Path("/etc/lsmpy/lsmpy.toml")
DEFAULT_STATE_DIR = "/var/run"

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,20}\Z", description="1 to 20 letters, digits, '_' or '-'")]
# The kernel's own rule for interface names (dev_valid_name), less what would need quoting in iptables and sh.
Device = Annotated[str, Meta(pattern=r"^(?!\.\.?\Z)[A-Za-z0-9_.:@-]{1,15}\Z", description="an interface name")]
Percent = Annotated[int, Meta(ge=0, le=100, description="a whole number from 0 to 100")]
Count = Annotated[int, Meta(ge=1, le=100, description="a whole number from 1 to 100")]
Milliseconds = Annotated[int, Meta(ge=10, le=3_600_000, description="milliseconds, from 10 to 3600000")]
Positive = Annotated[int, Meta(ge=1, le=0xFFFFFFFF, description="a whole number from 1")]


class Probe(Struct, frozen=True, forbid_unknown_fields=True):
    """LSM's thresholds, in LSM's words; its window is the last 100 probes (README of LSM, "connection")."""

    interval_ms: Milliseconds = 1000
    timeout_ms: Milliseconds = 1000
    max_packet_loss: Percent = 15
    max_successive_pkts_lost: Count = 7
    min_packet_loss: Percent = 5
    min_successive_pkts_rcvd: Count = 10


class Nat(Struct, frozen=True):
    """How the source address of what leaves by an ISP is translated, for each family."""

    ipv4: Literal["snat", "masquerade", "none"] = "snat"
    ipv6: Literal["none", "snat", "masquerade", "npt", "npt-stateless"] = "none"

    def kind(self, family: Family) -> str:
        """`snat`, `masquerade` or `none`."""
        return self.ipv4 if family == 4 else self.ipv6


class _Addressed(Struct, frozen=True, kw_only=True):
    """Something with a name and addresses on one interface of the router."""

    name: Name
    interface: Device
    address: tuple[str, ...]

    def addresses(self, family: Family) -> tuple[Interface, ...]:
        """Its addresses of one family with their networks, in the order of the file."""
        return tuple(each for each in map(_interface, self.address) if each.version == family)


class Isp(_Addressed, frozen=True, kw_only=True):
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
        """The gateway of one family, or None when this ISP does not carry it."""
        return next((each for each in map(_address, self.gateway) if each.version == family), None)

    def carries(self, family: Family) -> bool:
        """Whether this ISP has an address and a gateway of the family."""
        return self.next_hop(family) is not None


class Lan(_Addressed, frozen=True, kw_only=True):
    """One network whose new connections are balanced."""


class Options(Struct, frozen=True):
    """The `[router]` table."""

    flush: Literal["all", "own"] = "all"
    balance: Literal["nth", "random", "hash"] = "nth"
    local_traffic: Literal["balance", "main"] = "main"
    when_all_down: Literal["all", "flush", "unreachable"] = "all"
    flush_conntrack: bool = False
    iptables: Literal["auto", "nft", "legacy"] = "auto"
    mark_mask: Positive = 0xFFFFFFFF


class Rules(Struct, frozen=True):
    """Files in iptables-save format whose rules are part of every rebuild."""

    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def files(self, family: Family) -> tuple[Path, ...]:
        """The rule files of one family."""
        return tuple(Path(name) for name in (self.ipv4 if family == 4 else self.ipv6))


class Router(Struct, frozen=True, kw_only=True):
    """The whole configuration, checked."""

    isps: tuple[Isp, ...]
    lans: tuple[Lan, ...]
    state_dir: str = DEFAULT_STATE_DIR
    options: Options = Options()
    rules: Rules = Rules()
    warnings: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that some ISP carries or some rules file is about; the others are never touched."""
        return tuple(f for f in FAMILIES if self.rules.files(f) or any(isp.carries(f) for isp in self.isps))

    def mark_value(self, isp: Isp) -> int:
        """The bits of `isp`'s mark where `mark_mask` puts them."""
        return isp.mark * lowest_bit(self.options.mark_mask)


class ConfigError(LsmpyError):
    """Every mistake of one configuration, a line each, `FILE:LINE: KEY: …`."""

    exit_status = 2


# What the contract promises and a later version brings: refused loudly, never ignored.
_LATER: dict[str, tuple[object, ...]] = {
    "router.flush": ("own",),
    "router.balance": ("hash",),
    "router.local_traffic": ("balance",),
    "router.when_all_down": ("flush", "unreachable"),
    "router.flush_conntrack": (True,),
    "isp.clamp_mss": (True,),
    "nat.ipv6": ("npt", "npt-stateless"),
}
_LATER_KEYS = {"policy", "events", "isp.prefix", "rules.after"}
_SINGLE_OR_LIST = {"address", "gateway", "check"}
_TABLES: dict[str, type[Struct]] = {"router": Options, "probe": Probe, "rules": Rules, "nat": Nat}


@lru_cache(maxsize=1024)
def _interface(text: str) -> Interface:
    return ipaddress.ip_interface(text)


@lru_cache(maxsize=1024)
def _address(text: str) -> Address:
    return ipaddress.ip_address(text)


def lowest_bit(mask: int) -> int:
    """The value of the lowest bit that is set in `mask`."""
    return mask & -mask


def load(path: Path) -> Router:
    """Read and check the configuration in `path`.

    Raises:
        ConfigError: with every mistake at once.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}. Nothing was changed.") from error
    return parse(data, str(path), _table_names())


def parse(data: bytes, source: str, table_names: dict[str, int]) -> Router:
    """Turn TOML into a `Router`.

    Args:
        data: the file's content.
        source: what messages call the file.
        table_names: names of routing tables and their numbers, as in rt_tables.

    Raises:
        ConfigError: with every mistake at once.
    """
    try:
        text = data.decode()
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{source}:{line}: not text: byte {data[error.start]:#04x} is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"line (\d+)", str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise ConfigError(f"{source}:{line}: not TOML: {error}") from error
    return _Reader(raw, text, source, table_names).router()


def _table_names() -> dict[str, int]:
    """Names and numbers from iproute2's rt_tables files (ip-route(8), FILES)."""
    names: dict[str, int] = {}
    roots = [Path("/usr/share/iproute2"), Path("/usr/lib/iproute2"), Path("/etc/iproute2")]
    files = [file for root in roots for file in (root / "rt_tables", *sorted(root.glob("rt_tables.d/*.conf")))]
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if match := re.match(r"\s*(0x[0-9a-fA-F]+|\d+)\s+([^\s#]+)", line):
                names[match[2]] = int(match[1], 0)
    return names


class _Reader:
    """Walks one parsed file and collects what is wrong with it."""

    def __init__(self, raw: dict[str, Any], text: str, source: str, table_names: dict[str, int]) -> None:
        self.raw, self.source, self.table_names = raw, source, table_names
        self.lines = _Lines(text)
        self.errors: list[tuple[int, str]] = []
        self.unusable: set[tuple[str, int | None, str]] = set()  # keys whose values are stand-ins
        self.warnings: list[str] = []

    def router(self) -> Router:
        raw = self.raw
        self._unknown("", raw, {"state_dir", "isp", "lan", *_TABLES, *_LATER_KEYS})
        tables = {name: self._fields(kind, name, None, raw.get(name, {})) for name, kind in _TABLES.items()}
        defaults = {name: tables[name] for name in ("probe", "nat")}
        isps = [self._isp(index, item, defaults) for index, item in enumerate(self._items("isp"))]
        lans = [Lan(**self._fields(Lan, "lan", index, item)) for index, item in enumerate(self._items("lan"))]
        if not isps:
            self._wrong("", None, "isp", "no ISP is configured; add an [[isp]] table for each provider")
        self._check(isps, lans, Options(**tables["router"]), raw.get("state_dir", DEFAULT_STATE_DIR))
        if self.errors:
            raise ConfigError("\n".join(f"{self.source}:{line}: {text}" for line, text in sorted(self.errors)))
        return Router(
            isps=tuple(isps),
            lans=tuple(lans),
            state_dir=raw.get("state_dir", DEFAULT_STATE_DIR),
            options=Options(**tables["router"]),
            rules=Rules(**tables["rules"]),
            warnings=tuple(self.warnings),
        )

    # -- one table at a time: types and unknown keys ---------------------------------------------------------

    def _items(self, name: str) -> list[Any]:
        items = self.raw.get(name, [])
        if isinstance(items, list):
            return items
        self._wrong("", None, name, f"expected one [[{name}]] table for each, got a single [{name}]")
        return []

    def _isp(self, index: int, raw: Any, defaults: dict[str, dict[str, Any]]) -> Isp:
        fields = self._fields(Isp, "isp", index, raw)
        for name, kind in (("probe", Probe), ("nat", Nat)):
            own = raw.get(name, {}) if isinstance(raw, dict) else {}
            fields[name] = kind(**defaults[name] | self._fields(kind, f"isp.{name}", index, own))
        place = index + 1
        fields.setdefault("mark", place)
        fields["table"] = self._table_number(index, fields.get("table", 251 - place))
        return Isp(**fields)

    def _fields(self, kind: type[Struct], table: str, index: int | None, raw: Any) -> dict[str, Any]:
        """The values of one table that are of the right type; what is not is reported and gets a harmless stand-in."""
        if not isinstance(raw, dict):
            self._wrong(table, index, "", f"expected a table, got {_shown(raw)}")
            raw = {}
        nested = {"probe", "nat"} if kind is Isp else set()
        self._unknown(table, raw, set(kind.__struct_fields__), index)
        hints = get_type_hints(kind, include_extras=True)
        required = {f.name for f in msgspec.structs.fields(kind) if f.required}
        good: dict[str, Any] = {}
        for key in kind.__struct_fields__:
            if key in nested:
                continue
            if key not in raw:
                if key in required:
                    self._wrong(table, index, key, f"is missing; give {_expected(hints[key])}", at="")
                    self.unusable.add((table, index, key))
                    good[key] = _stand_in(table, index, key)
                continue
            value = raw[key]
            if key in _SINGLE_OR_LIST and isinstance(value, str):
                value = [value]
            try:
                good[key] = msgspec.convert(value, hints[key])
            except msgspec.ValidationError:
                self._wrong(table, index, key, f"expected {_expected(hints[key])}, got {_shown(raw[key])}")
                self.unusable.add((table, index, key))
                good.update({key: _stand_in(table, index, key)} if key in required else {})
                continue
            self._later(table, index, key, good[key])
        return good

    def _later(self, table: str, index: int | None, key: str, value: object) -> None:
        path = f"{table.removeprefix('isp.') if table == 'isp.nat' else table}.{key}"
        if value in _LATER.get(path, ()) or (path in _LATER_KEYS and value):
            instead = "leave the key out" if path in _LATER_KEYS or value is True else "the default is"
            default = "" if instead == "leave the key out" else f" {_shown(_default(table, key))}"
            self._wrong(table, index, key, f"{_shown(value)} needs a later version of lsmpy; {instead}{default}")

    def _unknown(self, table: str, raw: dict[str, Any], known: set[str], index: int | None = None) -> None:
        for key in raw:
            if key not in known:
                self._wrong(table, index, key, _unknown_key(key, known))
            elif not table and key in _LATER_KEYS and raw[key] not in ([], {}, {"script": []}):
                self._wrong("", None, key, "needs a later version of lsmpy; leave it out")

    def _table_number(self, index: int, table: int | str) -> int:
        number = self.table_names.get(table) if isinstance(table, str) else table
        if number is None:
            text = f"{_shown(table)} is no name in /etc/iproute2/rt_tables; give its number"
            self._wrong("isp", index, "table", text)
            self.unusable.add(("isp", index, "table"))
        elif not 1 <= number <= 0xFFFFFFFF or number in (253, 254, 255):
            self._wrong("isp", index, "table", f"{number} is not free for an ISP; choose one from 1 to 252")
        return number or 1

    # -- the whole: what must fit together -------------------------------------------------------------------

    def _check(self, isps: list[Isp], lans: list[Lan], options: Options, state_dir: object) -> None:
        if not isinstance(state_dir, str) or not state_dir.startswith("/"):
            self._wrong("", None, "state_dir", f"expected an absolute path, got {_shown(state_dir)}")
        self._check_mask(isps, options.mark_mask)
        self._unique("isp", isps, ("name", "mark", "table"))
        self._unique("lan", lans, ("name",))
        interfaces: dict[str, str] = {}
        addresses: dict[str, str] = {}
        for table, items in (("isp", isps), ("lan", lans)):
            for index, item in enumerate(items):
                if other := interfaces.get(item.interface):
                    text = (
                        f"{_shown(item.interface)} is {other}'s already; each ISP and LAN needs an interface of its own"
                    )
                    self._wrong(table, index, "interface", text)
                interfaces.setdefault(item.interface, item.name)
                self._check_addresses(table, index, item)
                for text in item.address:
                    other = addresses.setdefault(text.split("/")[0], item.name)
                    if other != item.name:
                        self._wrong(table, index, "address", f"{text} is {other}'s already; give each its own")
        for index, isp in enumerate(isps):
            self._check_isp(index, isp)
        if options.balance == "nth" and not any(key in ("balance", "weight", "tier") for _, _, key in self.unusable):
            self._check_weights(isps)

    def _check_mask(self, isps: list[Isp], mask: int) -> None:
        values = mask // lowest_bit(mask)
        if values & (values + 1):
            self._wrong("router", None, "mark_mask", f"{mask:#x} has gaps; give bits in a row, such as 0xff00")
        for index, isp in enumerate(isps):
            if isp.mark > values:
                text = f"{isp.mark} does not fit into mark_mask {mask:#x}; give a mark from 1 to {values}"
                self._wrong("isp", index, "mark", text)

    def _unique(self, table: str, items: list[Isp] | list[Lan], keys: tuple[str, ...]) -> None:
        for key in keys:
            seen: dict[object, str] = {}
            for index, item in enumerate(items):
                value = getattr(item, key)
                if (table, index, key) in self.unusable:
                    continue
                if value in seen:
                    self._wrong(table, index, key, f"{_shown(value)} is {seen[value]}'s already; give each its own")
                seen.setdefault(value, item.name)

    def _check_addresses(self, table: str, index: int, item: _Addressed) -> None:
        if not item.address and (table, index, "address") not in self.unusable:
            self._wrong(table, index, "address", 'is empty; give an address with its prefix, such as "192.0.2.1/24"')
        for text in item.address:
            if text == "auto":
                self._wrong(table, index, "address", '"auto" needs a later version of lsmpy; give the address')
                continue
            if not _is_interface(text):
                self._wrong(table, index, "address", f'{_shown(text)} is no address; give one such as "192.0.2.1/24"')
            elif "/" not in text:
                length = 64 if ":" in text else 24
                text = f'{_shown(text)} has no prefix length; write "{text}/{length}" or what your network has'
                self._wrong(table, index, "address", text)

    def _check_isp(self, index: int, isp: Isp) -> None:
        own = [ipaddress.ip_interface(text) for text in isp.address if _is_interface(text)]
        # One mistake is told once: what cannot be read is not held against other keys.
        own_known = bool(own) and all("/" in text and _is_interface(text) for text in isp.address)
        hops_known = all(map(_is_address, isp.gateway)) and ("isp", index, "gateway") not in self.unusable
        hops: dict[int, str] = {}
        for text in isp.gateway:
            if text in ("auto", "none"):
                self._wrong("isp", index, "gateway", f'"{text}" needs a later version of lsmpy; give the address')
                continue
            if not _is_address(text):
                self._wrong("isp", index, "gateway", f'{_shown(text)} is no address; give one such as "192.0.2.2"')
                continue
            hop = ipaddress.ip_address(text)
            if hop.version in hops:
                self._wrong("isp", index, "gateway", f"two of IPv{hop.version}; give one of each family")
            hops[hop.version] = text
            networks = [each.network for each in own if each.version == hop.version]
            if any(each.ip == hop for each in own):
                self._wrong("isp", index, "gateway", f"{text} is the router's own address; give the provider's")
            elif own_known and not any(hop in network for network in networks) and not (networks and hop.is_link_local):
                inside = ", ".join(map(str, networks)) or f"nothing: there is no IPv{hop.version} address"
                self._wrong("isp", index, "gateway", f"{text} is outside the ISP's network; give one inside {inside}")
        for family in sorted({each.version for each in own} - hops.keys()) if hops_known else ():
            self._wrong("isp", index, "gateway", f"there is an IPv{family} address but no gateway of IPv{family}")
        if ("isp", index, "check") not in self.unusable:
            self._check_targets(index, isp, set(hops) if hops_known else set(FAMILIES))
        if not 1 <= isp.quorum <= max(1, len(isp.check)) and ("isp", index, "check") not in self.unusable:
            text = f"{isp.quorum} of {len(isp.check)} targets can never answer; give 1 to {len(isp.check)}"
            self._wrong("isp", index, "quorum", text)
        unknown = {(table, place) for table, place, key in self.unusable if key.endswith("_packet_loss")}
        known = unknown.isdisjoint({("probe", None), ("isp.probe", index)})
        if known and isp.probe.max_packet_loss <= isp.probe.min_packet_loss:
            highest, lowest = isp.probe.max_packet_loss, isp.probe.min_packet_loss
            text = f"max_packet_loss ({highest}) must be above min_packet_loss ({lowest}), or the ISP would flip"
            self._wrong("isp", index, "probe", text)

    def _check_targets(self, index: int, isp: Isp, families: set[int]) -> None:
        if not isp.check:
            self._wrong("isp", index, "check", "is empty; give at least one address that only this ISP's failure hides")
        for place, text in enumerate(isp.check):
            if text == "gateway":
                self.warnings.append(
                    f"{isp.name}: check: the gateway answers while its upstream is dead; probe an address behind it"
                )
            elif not _is_address(text):
                later = text == "arp" or "://" in text
                why = "needs a later version of lsmpy; give an address" if later else "is no address; give one to ping"
                self._wrong("isp", index, "check", f"{_shown(text)} {why}")
            elif (version := ipaddress.ip_address(text).version) not in families:
                self._wrong("isp", index, "check", f"{text} is IPv{version}, for which this ISP has no gateway")
            if text in isp.check[:place]:
                self._wrong("isp", index, "check", f"{text} stands twice; give different targets")

    def _check_weights(self, isps: list[Isp]) -> None:
        for tier in sorted({isp.tier for isp in isps}):
            weights = [isp.weight for isp in isps if isp.tier == tier]
            if (needed := sum(shares.reduce(weights))) > shares.MAX_SLOTS:
                index = next(i for i, isp in enumerate(isps) if isp.tier == tier)
                ratio = ":".join(map(str, shares.nearest(weights)))
                text = (
                    f"the weights of tier {tier} need {needed} slots and nth has {shares.MAX_SLOTS}; "
                    f'give {ratio}, or balance = "random"'
                )
                self._wrong("isp", index, "weight", text)

    def _wrong(self, table: str, index: int | None, key: str, text: str, at: str | None = None) -> None:
        line = self.lines.find(table, index, key if at is None else at)
        path = ".".join(part for part in (table, key) if part)
        self.errors.append((line, f"{path}: {text}"))


class _Lines:
    """Finds the line of a key, which tomllib does not tell."""

    def __init__(self, text: str) -> None:
        self.places: dict[tuple[str, int | None, str], int] = {}
        table, index, counts = "", None, dict[str, int]()
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w.-]+)", line):
                table = header[2]
                root = table.split(".")[0]
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                index = counts.get(root)
                self.places.setdefault((table, index, ""), number)
                self.places.setdefault((root, index, table.partition(".")[2]), number)
            elif key := re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", line):
                self.places.setdefault((table, index, key[1]), number)
                self.places.setdefault((table, index, key[1].split(".")[0]), number)
                if inline := re.match(r"\s*([\w-]+)\s*=\s*\{", line):
                    for inner in re.findall(r"([\w-]+)\s*=", line[inline.end() :]):
                        self.places.setdefault((f"{table}.{inline[1]}".lstrip("."), index, inner), number)

    def find(self, table: str, index: int | None, key: str) -> int:
        """The line of the key, else of its table, else 1."""
        outer, _, last = table.rpartition(".")
        places = [(table, index, key), (table, index, ""), (outer, index, last), (outer, index, "")]
        places += [(key, None, ""), (key, 0, "")]
        return next((self.places[place] for place in places if place in self.places), 1)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_interface(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return True


def _stand_in(table: str, index: int | None, key: str) -> object:
    """What is used for a required value that cannot be, so that everything else can still be checked."""
    return () if key in _SINGLE_OR_LIST else f"{table} {0 if index is None else index + 1}"


def _default(table: str, key: str) -> object:
    kind: type[Struct] = Options if table == "router" else Nat
    return next(f.default for f in msgspec.structs.fields(kind) if f.name == key)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _expected(hint: Any) -> str:
    """What a type wants, in words."""
    if hint is bool:
        return "true or false"
    if hint == tuple[str, ...]:
        return "text or a list of texts"
    if choices := [each for each in get_args(hint) if isinstance(each, str)]:
        return " or ".join(_shown(each) for each in choices)
    for extra in get_args(hint):
        if isinstance(extra, Meta) and extra.description:
            return extra.description
    return "a number or a name"


def _unknown_key(key: str, known: set[str]) -> str:
    from difflib import get_close_matches  # only needed to talk about mistakes

    near = get_close_matches(key, sorted(known), 1)
    return f"there is no such key; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(sorted(known))}"
