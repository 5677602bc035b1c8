"""Shares: in which order new connections are dealt out, so that every ISP gets its weight's part (R8)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from math import gcd

MAX_SLOTS = 128  # one rule a slot of the cascade; more would only slow down new connections
WINDOW = 100  # connections over which shares are promised to be exact to one


def slots(weights: Sequence[int]) -> tuple[int, ...]:
    """Who gets each connection of one round, as places in `weights`.

    Over any `WINDOW` consecutive connections each gets its share ± 1. With two weights an evenly spread round of the
    weights' reduced sum always does that; with more it may be impossible, and then the round has `WINDOW` slots, so
    that a window is one whole round. Where not even that is possible, because the shares of several are below one,
    those of the same weight take turns in slots that are spread as if they were one; beyond six ISPs one may then be
    off by 2.
    """
    reduced = reduce(weights)
    spread = _spread(reduced)
    if _is_exact(spread, reduced):
        return spread
    parts = _apportion(reduced, WINDOW)
    return _spread(parts) if parts else _spread_in_groups(reduced)


def reduce(weights: Sequence[int]) -> list[int]:
    """The weights without their common divisor."""
    divisor = gcd(*weights)
    return [weight // divisor for weight in weights]


def nearest(weights: Sequence[int]) -> list[int]:
    """The nearest weights whose sum is at most `MAX_SLOTS`, each at least 1."""
    room, fitting = MAX_SLOTS, reduce(weights)
    while sum(fitting) > MAX_SLOTS:
        fitting = reduce([max(1, round(weight * room / sum(weights))) for weight in weights])
        room -= 1
    return fitting


def _spread(weights: Sequence[int]) -> tuple[int, ...]:
    """One round of smooth weighted round robin: each in turn gains its weight, the richest pays for a slot."""
    total, credit, order = sum(weights), [0] * len(weights), []
    for _ in range(total):
        credit = [have + weight for have, weight in zip(credit, weights, strict=True)]
        richest = credit.index(max(credit))
        credit[richest] -= total
        order.append(richest)
    return tuple(order)


def _is_exact(order: Sequence[int], weights: Sequence[int]) -> bool:
    """Whether every window of `WINDOW` slots of the endless repetition holds each share ± less than one."""
    total, rest = len(order), WINDOW % len(order)
    for place, weight in enumerate(weights):
        count = order[:rest].count(place)
        for start in range(total):
            if abs(count * total - rest * weight) >= total:
                return False
            count += (order[(start + rest) % total] == place) - (order[start] == place)
    return True


def _apportion(weights: Sequence[int], seats: int) -> list[int]:
    """`seats` divided by largest remainder (Hamilton's method), at least one each; empty if not all are then ± 1."""
    total = sum(weights)
    parts = [max(1, -((total - weight * seats) // total)) for weight in weights]  # at least the share less one
    while sum(parts) < seats:
        lacks = [weight * seats - part * total for weight, part in zip(weights, parts, strict=True)]
        parts[lacks.index(max(lacks))] += 1
    return parts if sum(parts) == seats else []


def _spread_in_groups(weights: Sequence[int]) -> tuple[int, ...]:
    """One round in which those of the same weight take turns in slots that are spread as if they were one."""
    groups: dict[int, list[int]] = {}
    for place, weight in enumerate(weights):
        groups.setdefault(weight, []).append(place)
    turns = [cycle(places) for places in groups.values()]
    return tuple(next(turns[group]) for group in _spread([weight * len(each) for weight, each in groups.items()]))
