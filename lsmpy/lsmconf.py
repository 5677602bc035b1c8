"""LSM's configuration: an lsm.conf or foolsm.conf in, connections and groups out, or every mistake in it at once."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from msgspec import Struct

from lsmpy import ConfigError
from lsmpy.lsmmodel import Connection, Group, Settings, address, number
from lsmpy.mistakes import shown

_WORDS = {"defaults {": "defaults", "connection {": "connection", "group {": "group"}
_GROUP_KEYS = frozenset(
    ("name", "eventscript", "notifyscript", "unknown_up_notify", "warn_email", "status", "queue", "device", "logic")
)
# What is below or above is taken for the nearest that makes sense. LSM sends no more than one probe in 20 ms anyway,
# and looks for lateness once a second.
_SENSIBLE = {
    "interval_ms": (10, 10**15),  # some write a number without end for "never"
    "timeout_ms": (10, 3_600_000),
    "startup_burst_interval": (10, 3_600_000),
    "ttl": (0, 255),
    "status": (0, 3),
}

_MOST_DEBUG = 8

Read = Callable[[str], str]
Match = Callable[[str], Sequence[str] | None]


_KEYS = tuple(each for each in Connection.__struct_fields__ if each != "line")
# Where each package has the script that mails.
_DEFAULT_SCRIPTS = {"lsm": "/usr/share/lsm/default_script", "foolsm": "/usr/lib/foolsm/default_script"}


@functools.cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Connection)


def is_lsm(path: Path, data: bytes | None) -> bool:
    """Whether a configuration is LSM's: TOML's has a table, whose line no lsm.conf could have.

    `data` is what is in the file; None if it cannot be read.
    """
    if path.suffix == ".toml" or data is None:
        return path.suffix == ".conf"
    return not any(line.lstrip().startswith(b"[") for line in data.splitlines())


def flavour(name: str) -> str:
    """`foolsm` or `lsm`, by the name of a program or the path of a configuration."""
    return "foolsm" if "foolsm" in name else "lsm"


def load(path: Path, data: bytes | None = None, called: str = "") -> Settings:
    """Read and check the configuration in `path`, and what it includes; `data` if that has been read already.

    `called` is as for `parse`.

    Raises:
        ConfigError: with every mistake at once, or because it has no connection.
    """
    try:
        text = _read(str(path)) if data is None else _text(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}. Nothing was changed.") from error
    return parse(text, str(path), _read, _match, called)


def parse(text: str, source: str, read: Read, match: Match, called: str = "") -> Settings:
    """Turn the text of an lsm.conf into `Settings`.

    Args:
        text: the file's content.
        source: what messages call the file.
        read: gives the content of a file that is included; raises OSError.
        match: the files that an `include` means, in order; None if there is no such directory.
        called: the name of the program that it is for; if left out, it is known by `source` whether that is foolsm.

    Raises:
        ConfigError: with every mistake at once, or because it has no connection.
    """
    reader = _Reader(flavour(called or source), read, match)
    reader.take(text, source)
    return reader.settings(source)


def normal(line: str) -> str:
    """A line as LSM sees it: without its comment, with single spaces, and none around its `=`."""
    line = re.sub(" +", " ", line.rstrip("\r").partition("#")[0].replace("\t", " ")).strip(" ")
    return re.sub(" ?= ?", "=", line)


class _Block(Struct):
    kind: str
    place: str
    values: dict[str, Any]
    lines: dict[str, str]
    members: list[tuple[str, str]]


class _Reader:
    """Takes files line by line, and collects what is in them and what is wrong."""

    def __init__(self, flavour: str, read: Read, match: Match) -> None:
        self._flavour, self._open, self._match = flavour, read, match
        self._debug = 8
        self._defaults: dict[str, Any] = {"notifyscript": _DEFAULT_SCRIPTS[flavour]}
        self._default_lines: dict[str, str] = {}
        self._blocks: list[_Block] = []
        self._under_way: list[str] = []
        self._files: list[str] = []
        self._mistakes: list[tuple[int, int, str]] = []  # file, line, and all that is told
        self._warnings: list[str] = []

    def take(self, text: str, source: str) -> None:
        """One file, from its beginning to its end; blocks take effect in this order."""
        self._under_way.append(source)
        self._files.append(source)
        block: _Block | None = None
        place = f"{source}:1"
        for count, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            place, said = f"{source}:{count}", normal(line)
            if not said:
                continue
            if block is None:
                block = self._begin(said, place)
            elif said == "}":
                self._end(block)
                block = None
            else:
                self._value(block, said, place)
        if block is not None:
            self._wrong(place, block.kind, f"its block of {block.place} has no end; put a }} on a line of its own")
        self._under_way.pop()

    def settings(self, source: str) -> Settings:
        """What was taken.

        Raises:
            ConfigError: as for `parse`.
        """
        connections = [self._connection(each) for each in self._blocks if each.kind == "connection"]
        groups = [self._group(each, connections) for each in self._blocks if each.kind == "group"]
        self._check_names(connections, groups)
        if self._mistakes:
            raise ConfigError("\n".join(text for *_, text in sorted(self._mistakes)))
        if not connections:
            raise ConfigError(f"{source}: no targets found in config file: there is no connection {{ … }} in it")
        return Settings(self._flavour, self._debug, tuple(connections), tuple(groups), tuple(self._warnings))

    def _wrong(self, place: str, key: str, text: str) -> None:
        source, _, line = place.rpartition(":")
        key = key if key.isprintable() else repr(key)
        self._mistakes.append((self._files.index(source), int(line), f"{place}: {key}: {text}"))

    # -- lines -------------------------------------------------------------------------------------------------------

    def _begin(self, said: str, place: str) -> _Block | None:
        word, _, rest = said.partition(" ")
        if said in _WORDS:
            kind = _WORDS[said]
            inherited = dict(self._defaults) if kind == "connection" else self._inherited()
            lines = dict(self._default_lines)
            return _Block(kind, place, {} if kind == "defaults" else inherited, lines, [])
        if word in ("include", "-include") and rest:
            self._include(rest, place, word == "include")
        elif said.startswith("debug="):
            self._debug = self._number(said.removeprefix("debug="), place, "debug")
            if self._debug > _MOST_DEBUG:
                text = (
                    f"{self._debug} says no more than {_MOST_DEBUG}: single packets are not logged; tcpdump shows them"
                )
                self._warnings.append(f"{place}: debug: {text}")
        else:
            known = "debug=…, defaults {, connection {, group {, include … and -include …"
            what = f"unrecognised global config option {shown(said)}; known are {known}"
            if re.match(r"(defaults|connection|group) ?\{", said):
                what = f"{shown(said)}: give a space before the brace, and nothing after it on its line"
            self._wrong(place, word.partition("=")[0] or word, what)
        return None

    def _inherited(self) -> dict[str, Any]:
        """What a group has from `defaults`; LSM before 1.0.11 knows no device of groups."""
        keys = _GROUP_KEYS - {"logic"} - ({"device"} if self._flavour == "lsm" else set())
        return {key: value for key, value in self._defaults.items() if key in keys}

    def _include(self, pattern: str, place: str, required: bool) -> None:
        found = self._match(pattern)
        if not found and required:
            why = "there is no such directory" if found is None else "no file matches"
            self._wrong(place, "include", f"{pattern}: {why}; name files that exist, or write -include")
        for name in found or ():
            if name in self._under_way:
                self._wrong(place, "include", f"{name} includes itself; take it out")
                continue
            try:
                text = self._open(name)
            except OSError as error:
                self._warnings.append(f"{place}: include: can't open config file {shown(name)}: {error.strerror}")
                continue
            self.take(text, name)

    def _value(self, block: _Block, said: str, place: str) -> None:
        key, equals, text = said.partition("=")
        what = f"unrecognised {block.kind} config option"
        if not equals:
            self._wrong(place, block.kind, f"{what} {shown(said)}; write KEY=VALUE, or a }} to end the block")
        elif block.kind == "group" and key == "member-connection":
            block.members.append((text, place))
        elif key not in (_GROUP_KEYS if block.kind == "group" else _KEYS):
            known = _GROUP_KEYS | {"member-connection"} if block.kind == "group" else frozenset(_KEYS)
            self._wrong(place, f"{block.kind}.{key}", f"{what}; {_suggest(key, known)}")
        else:
            block.lines[key] = place
            block.values[key] = self._convert(key, text, place)

    def _convert(self, key: str, text: str, place: str) -> object:
        hint = int if key == "logic" else _hints()[key]
        if hint is str:
            return text
        if hint == tuple[str, ...]:
            return (text,) if text else ()
        value = self._number(text, place, key)
        least, most = _SENSIBLE.get(key, (value, value))
        if not least <= value <= most:
            nearest = 2 if key == "status" else min(max(value, least), most)
            self._warnings.append(f"{place}: {key}: {value} is not from {least} to {most}; it is taken for {nearest}")
            return nearest
        return value

    def _number(self, text: str, place: str, key: str) -> int:
        value = number(text)
        if text and not re.fullmatch(r"[+-]?[0-9]+", text):
            self._warnings.append(
                f"{place}: {key}: {shown(text)} is taken for {value}, as LSM does; give a number alone"
            )
        return value

    def _end(self, block: _Block) -> None:
        if block.kind == "defaults":
            self._defaults |= block.values
            self._default_lines |= block.lines
        else:
            self._blocks.append(block)

    # -- what they amount to -----------------------------------------------------------------------------------------

    def _connection(self, block: _Block) -> Connection:
        made = Connection(**block.values, line=block.place)
        at = {key: block.lines.get(key, block.place) for key in ("checkip", "sourceip", "max_packet_loss", "check_arp")}
        check, source = address(made.checkip), address(made.sourceip)
        if check is None:
            text = f"{shown(made.checkip)} is no address; give one such as 192.0.2.1"
            self._wrong(at["checkip"], "connection.checkip", text)
        if made.sourceip and source is None:
            text = f"{shown(made.sourceip)} is no address; give one of this machine's, or leave it empty"
            self._wrong(at["sourceip"], "connection.sourceip", text)
        if check and source and check.version != source.version:
            text = f"{made.sourceip} is IPv{source.version} and checkip is IPv{check.version}; give both of one family"
            self._wrong(at["sourceip"], "connection.sourceip", text)
        if check and check.version == 6 and made.check_arp:
            text = "ipv6 and arping are not compatible; give an IPv4 checkip, or 0"
            self._wrong(at["check_arp"], "connection.check_arp", text)
        if made.max_packet_loss <= made.min_packet_loss:
            values = f"max_packet_loss ({made.max_packet_loss}) <= min_packet_loss ({made.min_packet_loss})"
            text = f"{values}. that would cause flip-flop effect; give a max_packet_loss above it"
            self._wrong(at["max_packet_loss"], "connection.max_packet_loss", text)
        for key, text, found in (("checkip", made.checkip, check), ("sourceip", made.sourceip, source)):
            if found and found.version == 4 and str(found) != text:
                self._warnings.append(f"{at[key]}: {key}: {shown(text)} is taken for {found}, as LSM does")
        self._note_useless(made, block.lines)
        return made

    def _note_useless(self, made: Connection, lines: Mapping[str, str]) -> None:
        """Tell of what somebody has written and what changes nothing."""
        without = {
            "long_down_eventscript": ("long_down_time", made.long_down_time <= 0),
            "long_down_notifyscript": ("long_down_time", made.long_down_time <= 0),
            "startup_burst_interval": ("startup_burst_pkts", made.startup_burst_pkts <= 0),
        }
        for key, (needed, lacking) in without.items():
            if lacking and getattr(made, key) and key in lines:
                self._warnings.append(f"{lines[key]}: {key}: {made.name}: has no effect without {needed}")
        if made.ttl and made.check_arp and "ttl" in lines:
            self._warnings.append(
                f"{lines['ttl']}: ttl: {made.name}: has no effect with check_arp, which is for neighbours"
            )
        if ":" in made.device:
            real, source = made.device.partition(":")[0], "" if made.sourceip else "; give its address as sourceip"
            text = f"{made.name}: probes leave by {real}, of which {made.device} is another name{source}"
            self._warnings.append(f"{lines['device']}: device: {text}")

    def _group(self, block: _Block, connections: Sequence[Connection]) -> Group:
        known = [each.name for each in connections]
        for name, place in block.members:
            if name not in known:
                text = f"connection group member {shown(name)} not found; {_suggest(name, known)}"
                self._wrong(place, "group.member-connection", text)
        return Group(**block.values, members=tuple(name for name, _ in block.members), line=block.place)

    def _check_names(self, connections: Sequence[Connection], groups: Sequence[Group]) -> None:
        seen: dict[str, Connection | Group] = {}
        everybody: tuple[Connection | Group, ...] = (*connections, *groups)
        for each in everybody:
            first = seen.setdefault(each.name, each)
            what = f"{shown(each.name)} is the name of {first.line} already"
            if first is not each and isinstance(each, Connection):
                self._wrong(each.line, "name", f"{what}; give each its own")
            elif first is not each:
                self._warnings.append(f"{each.line}: name: {what}; this group gets no state file")


def _suggest(word: str, known: Sequence[str] | frozenset[str]) -> str:
    from difflib import get_close_matches  # only needed to talk about mistakes

    near = get_close_matches(word, sorted(known), 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known)) or 'none'}"


def _read(name: str) -> str:
    return _text(Path(name).read_bytes())


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _match(pattern: str) -> list[str] | None:
    """The files that LSM would include: the last part is a pattern, the directory is not (fnmatch(3), no flags)."""
    directory, slash, last = pattern.rpartition("/")
    try:
        names = sorted(each.name for each in Path(directory + slash or ".").iterdir())
    except (OSError, ValueError):  # or its name is none
        return None
    return [directory + slash + each for each in names if fnmatch.fnmatchcase(each, last) and not each.endswith("~")]
