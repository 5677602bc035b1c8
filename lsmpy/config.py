"""The configuration: one TOML file in, one `Router` out, or every mistake in it at once."""

from __future__ import annotations

import codecs
import re
import tomllib
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from lsmpy import ConfigError, checks
from lsmpy.mistakes import Mistakes, shown
from lsmpy.model import DEFAULT_STATE_DIR, OWN_MASK, Events, Isp, Lan, Nat, Options, Policy, Probe, Router, Rules

DEFAULT_PATH = Path("/etc/lsmpy/lsmpy.toml")

_SINGLE_OR_LIST = {
    *("address", "gateway", "prefix", "check"),
    *("use", "to", "from", "lan", "protocol", "ports", "script"),
}
_DIGITS = 1000  # of which Python's int() takes not many more
_LONG = re.compile(rf"[\s=\[,][+-]?(?:0[xob]|\d)[\da-fA-F_]{{{_DIGITS}}}")
_TABLES: dict[str, type[Struct]] = {"router": Options, "probe": Probe, "rules": Rules, "nat": Nat, "events": Events}


def load(path: Path, probing: bool = False, data: bytes | None = None) -> Router:
    """Read and check the configuration in `path`.

    Args:
        path: the file.
        probing: whether it is for those who only ask whether ISPs are up, and may hold what only they can do.
        data: what is in it, if that has been read already.

    Raises:
        ConfigError: with every mistake at once.
    """
    try:
        data = path.read_bytes() if data is None else data
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}. Nothing was changed.") from error
    return parse(data, str(path), _table_names(), probing)


def parse(data: bytes, source: str, table_names: dict[str, int], probing: bool = False) -> Router:
    """Turn TOML into a `Router`.

    Args:
        data: the file's content.
        source: what messages call the file.
        table_names: names of routing tables and their numbers, as in rt_tables.
        probing: as for `load`.

    Raises:
        ConfigError: with every mistake at once.
    """
    data = data.removeprefix(codecs.BOM_UTF8)  # which some editors write
    try:
        text = data.decode()
        if long := _LONG.search(text):
            line = text.count("\n", 0, long.end()) + 1
            raise ConfigError(f"{source}:{line}: not TOML: a number of more than {_DIGITS} digits")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{source}:{line}: not text: byte {data[error.start]:#04x} is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"line (\d+)", str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise ConfigError(f"{source}:{line}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}:{_deepest(text)}: not TOML: too many lists or tables in one another") from error
    return _Reader(raw, text, source, table_names).router(probing)


def _deepest(text: str) -> int:
    """The first of the lines at whose end most brackets are open."""
    depths = list(accumulate(sum(map(line.count, "[{")) - sum(map(line.count, "]}")) for line in text.split("\n")))
    return depths.index(max(depths)) + 1


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
        self.raw, self.table_names = raw, table_names
        self.mistakes = Mistakes(text, source)

    def router(self, probing: bool) -> Router:
        raw = self.raw
        self._unknown("", raw, {"state_dir", "isp", "lan", "policy", *_TABLES})
        tables = {name: self._fields(kind, name, None, raw.get(name, {})) for name, kind in _TABLES.items()}
        defaults = {name: tables[name] for name in ("probe", "nat")}
        isps = [self._isp(index, item, defaults) for index, item in enumerate(self._items("isp"))]
        lans = [Lan(**self._fields(Lan, "lan", index, item)) for index, item in enumerate(self._items("lan"))]
        policies = [
            Policy(**self._fields(Policy, "policy", index, item)) for index, item in enumerate(self._items("policy"))
        ]
        if not isps:
            self.mistakes.wrong("", None, "isp", "no ISP is configured; add an [[isp]] table for each provider")
        state_dir = raw.get("state_dir", DEFAULT_STATE_DIR)
        if not isinstance(state_dir, str) or not state_dir.startswith("/"):
            self.mistakes.wrong("", None, "state_dir", f"expected an absolute path, got {shown(state_dir)}")
        if tables["router"].get("flush") == "own":
            tables["router"].setdefault("mark_mask", OWN_MASK)
        options, rules = Options(**tables["router"]), Rules(**tables["rules"])
        events = Events(**tables["events"])
        checks.check(self.mistakes, isps, lans, options)
        checks.check_prefixes(self.mistakes, isps, lans, policies, options)
        checks.check_rules(self.mistakes, rules, options)
        for table, key, paths in (
            *(("rules", "ipv4", rules.ipv4), ("rules", "ipv6", rules.ipv6), ("rules", "after", rules.after)),
            ("events", "script", events.script),
        ):
            checks.check_paths(self.mistakes, table, key, paths)
        checks.check_policies(self.mistakes, policies, isps, lans, options)
        if not probing:
            checks.check_router_part(self.mistakes, isps)
        self.mistakes.tell()
        return Router(
            isps=tuple(isps),
            lans=tuple(lans),
            state_dir=state_dir,
            options=options,
            rules=rules,
            events=events,
            policies=tuple(policies),
            warnings=tuple(self.mistakes.warnings),
        )

    def _items(self, name: str) -> list[Any]:
        items = self.raw.get(name, [])
        if isinstance(items, list):
            return items
        self.mistakes.wrong("", None, name, f"expected one [[{name}]] table for each, got a single [{name}]")
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
            self.mistakes.wrong(table, index, "", f"expected a table, got {shown(raw)}")
            raw = {}
        nested = {"probe", "nat"} if kind is Isp else set()
        self._unknown(table, raw, set(kind.__struct_encode_fields__), index)
        hints = get_type_hints(kind, include_extras=True)
        good: dict[str, Any] = {}
        for field in msgspec.structs.fields(kind):
            key, name, hint = field.encode_name, field.name, hints[field.name]
            if key in nested:
                continue
            if key not in raw:
                if field.required:
                    self.mistakes.wrong(table, index, key, f"is missing; give {_expected(hint)}", at="")
                    self.mistakes.replaced(table, index, key)
                    good[name] = _stand_in(table, index, key)
                continue
            value = raw[key]
            if key in _SINGLE_OR_LIST and isinstance(value, str | int):
                value = [value]
            try:
                good[name] = msgspec.convert(value, hint)
            except msgspec.ValidationError:
                self.mistakes.wrong(table, index, key, f"expected {_expected(hint)}, got {shown(raw[key])}")
                self.mistakes.replaced(table, index, key)
                good.update({name: _stand_in(table, index, key)} if field.required else {})
        return good

    def _unknown(self, table: str, raw: dict[str, Any], known: set[str], index: int | None = None) -> None:
        for key in raw:
            if key not in known:
                self.mistakes.wrong(table, index, key, _unknown_key(key, known))

    def _table_number(self, index: int, table: int | str) -> int:
        number = self.table_names.get(table) if isinstance(table, str) else table
        if number is None:
            text = f"{shown(table)} is no name in /etc/iproute2/rt_tables; give its number"
            self.mistakes.wrong("isp", index, "table", text)
            self.mistakes.replaced("isp", index, "table")
        elif not 1 <= number <= 0xFFFFFFFF or number in (253, 254, 255):
            self.mistakes.wrong("isp", index, "table", f"{number} is not free for an ISP; choose one from 1 to 252")
        return number or 1


def _stand_in(table: str, index: int | None, key: str) -> object:
    """What is used for a required value that cannot be, so that everything else can still be checked."""
    return () if key in _SINGLE_OR_LIST else f"{table} {0 if index is None else index + 1}"


def _expected(hint: Any) -> str:
    """What a type wants, in words."""
    if hint is bool:
        return "true or false"
    if hint == tuple[str, ...]:
        return "text or a list of texts"
    if choices := [each for each in get_args(hint) if isinstance(each, str)]:
        return " or ".join(shown(each) for each in choices)
    for extra in get_args(hint):
        if isinstance(extra, Meta) and extra.description:
            return extra.description
    return "a number or a name"


def _unknown_key(key: str, known: set[str]) -> str:
    from difflib import get_close_matches  # only needed to talk about mistakes

    near = get_close_matches(key, sorted(known), 1)
    return f"there is no such key; {f'did you mean {near[0]}?' if near else 'known are ' + ', '.join(sorted(known))}"
