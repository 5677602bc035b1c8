"""The guard of `flush = "all"`: tells our rules from others', and stops before others' are thrown away unasked."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from lsmpy import LsmpyError, memory
from lsmpy.changes import Changes
from lsmpy.model import Family
from lsmpy.netfilter import PREFIX
from lsmpy.plan import Plan, Side
from lsmpy.routing import PROTOCOL

log = logging.getLogger(__name__)

_SHOWN_RULES = 20
_TAG = f"{PREFIX}PREROUTING"


class GuardError(LsmpyError):
    """The guard of `flush = "all"`: a rebuild would throw away rules that nobody gave up."""


def is_first(live: Mapping[Family, Side]) -> bool:
    """Whether the kernel holds nothing of ours."""
    tagged = any(side.table("mangle").has(_TAG) for side in live.values())
    return not tagged and not any(rule.protocol == PROTOCOL for side in live.values() for rule in side.rules)


def _foreign(side: Side, wanted: Side, words: Collection[str] = ()) -> list[str]:
    """Rules that are neither in our chains nor in [rules], however the kernel spells those; each with its table."""
    found = []
    for table in side.tables:
        want = wanted.table(table.name)
        known = {*want.rules, *memory.spelled_rules(wanted.family, want), *words}
        found += [f"-t {table.name} {r}" for r in table.rules if r not in known and not _is_ours(r)]
    return found


def _is_ours(rule: str) -> bool:
    """Whether a rule is in one of our chains, or one of the jumps into them."""
    words = rule.split()
    return words[1].startswith(PREFIX) or (words[-2] == "-j" and words[-1].startswith(PREFIX))


def guard(
    asked: Mapping[Family, Side],
    wanted: Plan,
    given: Mapping[Family, Side],
    words: Mapping[Family, Collection[str]],
) -> None:
    """Stop before rules are thrown away that nobody gave up; what was given up once stays given up.

    Args:
        asked: what the kernel holds of what was not replaced yet.
        wanted: what it shall hold.
        given: what was given up before.
        words: the rules of [rules] in the kernel's words.

    Raises:
        GuardError: with the rules.
    """
    given_up = {rule for side in given.values() for table in side.tables for rule in table.rules}
    for side in wanted.sides:
        rules = [
            r
            for r in _foreign(asked[side.family], side, words.get(side.family, ()))
            if r.split(" ", 2)[2] not in given_up
        ]
        if rules:
            more = f"\n  … and {len(rules) - _SHOWN_RULES} more" if len(rules) > _SHOWN_RULES else ""
            shown = "".join(f"\n  {rule}" for rule in rules[:_SHOWN_RULES])
            tool = {4: "iptables", 6: "ip6tables"}[side.family]
            raise GuardError(
                f"{tool} holds {len(rules)} rules that a rebuild would throw away:{shown}{more}\n"
                "Nothing was changed. Either put them into a file of [rules] "
                f"(ipv{side.family} = […], iptables-save format), "
                'or set flush = "own" in [router] so that only lsmpy\'s own rules are touched, '
                "or give --replace once to have them replaced (they are saved in "
                f"{memory.directory() / f'before.v{side.family}'} and --clear puts them back)"
            )


def refuse_lossy(routes: list[str]) -> None:
    """Stop before routes are thrown away that could not be put back as they are.

    Raises:
        GuardError: with the routes.
    """
    if routes:
        raise GuardError(
            f"somebody has routes where lsmpy's would be, which it cannot put back later: {'; '.join(routes)}. Nothing "
            "was changed. Give the ISP another table, remove them, or give --replace once to have them replaced"
        )


def warn_of_lock_out(live: Mapping[Family, Side], wanted: Plan) -> None:
    """Say so where nothing would be let in any more."""
    for side in wanted.sides:
        policies = live[side.family].table("filter").policies()
        table = side.table("filter").with_policies(policies)
        for chain in table.chains:
            if chain.policy == "DROP" and not chain.rules:
                log.warning(
                    "IPv%s: policy of %s is DROP and no rule of [rules] accepts anything", side.family, chain.name
                )


def removed(live: Mapping[Family, Side], wanted: Plan, steps: list[Changes]) -> list[str]:
    """What others have added since and a rebuild throws away, to be named in the log."""
    warnings = []
    for side, step in zip(wanted.sides, steps, strict=True):
        now = live[side.family]
        touched = Side(side.family, tuple(now.table(table.name) for table in step.tables), (), ())
        if rules := _foreign(touched, side):
            shown = "; ".join(rules[:_SHOWN_RULES])
            warnings.append(f"removed {len(rules)} rules of IPv{side.family} that are not in [rules]: {shown}")
    return warnings
