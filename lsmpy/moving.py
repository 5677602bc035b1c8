"""An lsm.conf as an lsmpy.toml, as far as it tells of ISPs; what has no place there stands in comments. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import get_type_hints

import msgspec
from msgspec import Struct

from lsmpy.lsmmodel import Connection, Group, Settings
from lsmpy.model import Probe

_HEAD = """\
# Made from {source} by lsmpy import. It lacks what an lsm.conf does not say:
# - address and gateway, if "auto" (what the interface and its default route have) is not right;
# - a [[lan]] for each network whose connections are to be balanced.
"""
# Of a connection, what is not an ISP's; the scripts' work is done by lsmpy-reconfig --watch.
_LEFT_OUT = (
    *("sourceip", "ttl", "status", "queue", "warn_email", "notifyscript", "unknown_up_notify"),
    *("long_down_time", "long_down_email", "long_down_eventscript", "long_down_notifyscript"),
)
_LONGEST = 20  # of a name
_LOSSES = ("max_packet_loss", "min_packet_loss")
_SILENT, _SILENT_GROUP = Connection(notifyscript=""), Group()


class _Isp(Struct):
    """Connections by one interface that make one ISP, and the group that they are, if they are one."""

    name: str
    members: Sequence[Connection]
    quorum: int
    group: Group | None = None


def toml(settings: Settings, source: str) -> str:
    """The text of an lsmpy.toml with an `[[isp]]` for each group, and for each connection that is in none.

    Args:
        settings: what the lsm.conf says.
        source: what the text calls it.
    """
    lines = _HEAD.format(source=source).splitlines()
    isps, others = _isps(settings)
    for isp, name in zip(isps, _names(isps), strict=True):
        lines += ["", *_table(isp, name)]
    if others:
        lines += ["", *(f"# {line}" for line in others)]
    scripts = dict.fromkeys(script for each in settings.everybody for script in each.eventscript)
    if scripts:
        lines += ["", "# lsmpy-reconfig --watch rebuilds the router by itself. What an event script does besides:"]
        lines += ["# [events]", f"# script = {json.dumps(list(scripts))}"]
    text = "\n".join([*lines, ""])
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)  # TOML is text


def _isps(settings: Settings) -> tuple[list[_Isp], list[str]]:
    known = {each.name: each for each in settings.connections if not _is_at_home(each)}
    made, left, grouped = list[_Isp](), list[str](), set[str]()
    for group in settings.groups:
        members = [known[name] for name in dict.fromkeys(group.members) if name in known]
        if not members or len({each.device for each in members}) != 1 or not members[0].device:
            left.append(f"{group.line}: group {group.name}: its members do not share one device, so it is no ISP")
            continue
        grouped |= {each.name for each in members}
        made.append(_Isp(group.name, members, _quorum(group, members), group))
    for each in settings.connections:
        if each.name not in known and each.device:
            left.append(
                f"{each.line}: connection {each.name} (checkip {each.checkip}): asks this machine, so it is no ISP"
            )
        elif each.name not in grouped and each.device:
            made.append(_Isp(each.name, [each], 1))
        elif each.name not in grouped:
            left.append(f"{each.line}: connection {each.name} (checkip {each.checkip}): no device tells whose it is")
    return made, left


def _is_at_home(connection: Connection) -> bool:
    """Whether its probes never leave this machine, as those of the dummies that some distributions have."""
    target = connection.target
    at_home = target is None or target.is_loopback or target.is_unspecified or target.is_multicast
    return connection.interface == "lo" or (at_home and not connection.check_arp)


def _quorum(group: Group, members: Sequence[Connection]) -> int:
    return len(members) if group.logic else 1


def _names(isps: Sequence[_Isp]) -> Sequence[str]:
    """Names as lsmpy.toml takes them, numbered where they would be the same."""
    names: dict[str, None] = {}
    for isp in isps:
        plain = re.sub("[^A-Za-z0-9_-]", "_", isp.name)[:_LONGEST] or "ISP"
        numbered = (f"{plain[: _LONGEST - len(str(number)) - 1]}-{number}" for number in count(2))
        names[next(each for each in chain([plain], numbered) if each not in names)] = None
    return list(names)


def _table(isp: _Isp, name: str) -> Iterator[str]:
    first = isp.members[0]
    yield "[[isp]]"
    yield f"name = {json.dumps(name)}" + (f"  # {isp.name}" if name != isp.name else "")
    yield f"interface = {json.dumps(first.interface)}"
    yield 'address = "auto"'
    yield 'gateway = "auto"'
    checks = dict.fromkeys("arp" if each.check_arp else str(each.target) for each in isp.members)
    yield f"check = {json.dumps(list(checks))}"
    if min(isp.quorum, len(checks)) > 1:
        yield f"quorum = {len(checks)}"
    yield from _thresholds(first)
    if isp.group:
        yield from _remarks(isp.group)
    for each in isp.members:
        yield from _remarks(each)
        yield from _own_thresholds(each, first)


def _thresholds(connection: Connection) -> Iterator[str]:
    """Its thresholds, where they are not LSM's own; a value that lsmpy.toml cannot have is a remark."""
    hints = get_type_hints(Probe, include_extras=True)
    said, lost = dict[str, str](), set[str]()
    for key, default in ((each.name, each.default) for each in msgspec.structs.fields(Probe)):
        value = getattr(connection, key, default)
        try:
            msgspec.convert(value, hints[key])
        except msgspec.ValidationError as error:
            yield f"# {connection.line}: {key}={value}: {error}"
            lost.add(key)
        else:
            said |= {key: f"{key} = {value}"} if value != default else {}
    if not lost.isdisjoint(_LOSSES):  # the other one may be on the wrong side of what is taken in its place
        for key in [each for each in _LOSSES if each in said]:
            yield f"# {connection.line}: {said.pop(key)} has no place without the other limit of losses"
    if said:
        yield f"probe = {{ {', '.join(said.values())} }}"


def _own_thresholds(connection: Connection, first: Connection) -> Iterator[str]:
    """Tell of those that are not those of the `first` of its ISP, which has one of each."""
    keys = [key for key in Probe.__struct_fields__ if getattr(connection, key, None) != getattr(first, key, None)]
    if keys:
        said = ", ".join(f"{key}={getattr(connection, key)}" for key in keys)
        yield f"# {connection.line}: {connection.name}: {said}; the ISP has what {first.name} has"


def _remarks(of: Connection | Group) -> Iterator[str]:
    silent = _SILENT if isinstance(of, Connection) else _SILENT_GROUP
    left = [key for key in _LEFT_OUT if getattr(of, key, None) != getattr(silent, key, None)]
    if left:
        said = ", ".join(f"{key}={getattr(of, key)}" for key in left)
        yield f"# {of.line}: {of.name}: {said}".replace("\n", " ")
    if isinstance(of, Connection) and of.check_arp:
        yield f"# check_arp=1 asks for {of.checkip}; here for the gateway"
