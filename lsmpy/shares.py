"""Shares: in which order new connections are dealt out, so that every ISP gets its weight's part (R8)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import gcd

MAX_SLOTS = 128  # one rule a slot of the cascade; more would only slow down new connections
WINDOW = 100  # connections over which shares are promised to be exact to one


def slots(weights: Sequence[int]) -> tuple[int, ...]:
    """Who gets each connection of one round, as places in `weights`.

    Over any `WINDOW` consecutive connections each gets its share ± 1, however many there are. An evenly spread round of
    the weights' reduced sum does that for two weights, and often for more. Where it does not, the round has `WINDOW`
    slots, so that a window is one whole round. Where not even that is possible, because the shares of too many are
    below one, the reduced sum is dealt out in strides, which is exact as well but less even within a window.
    """
    reduced = reduce(weights)
    spread = _spread(reduced)
    if _is_exact(spread, reduced):
        return spread
    parts = _apportion(reduced, WINDOW)
    return _spread(parts) if parts else _stride(reduced)


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


def _stride(weights: Sequence[int]) -> tuple[int, ...]:
    """One round that is exact for all weights: seats beside each other in `weights`' order are `WINDOW` slots apart.

    A window that moves on by one slot loses slot s and gains slot s + `WINDOW`, the next seat. So a place's count only
    changes at the two ends of its row of seats, once up and once down: it has two neighbouring values, and its mean is
    the share. (The sum telescopes, as it does for the bounded remainder sets of Hecke and Kesten.)

    If `WINDOW` and the sum have a common divisor, the stride closes early and the seats fill that many columns, which
    alternate slot by slot. A place that goes on from one column to the next has one change more in each, both at the
    same height, when the window comes to the round's end: down by the former column, up by the latter. Its count is
    then the difference of the rounded down `WINDOW` * seat / total at its two ends. Where that is above the share (the
    remainder falls), down must come first, so the latter column is put on the right; else on the left. Then ups and
    downs alternate, and there are still two values only; or three where the share is a whole number: that one and its
    neighbours.
    """
    total, columns = sum(weights), deque[list[int]]()
    seats = [place for place, weight in enumerate(weights) for _ in range(weight)]
    height = total // gcd(WINDOW, total)
    for start in range(0, total, height):
        first = sum(weights[: seats[start]])
        falls = WINDOW * first % total > WINDOW * (first + weights[seats[start]]) % total
        (columns.append if falls else columns.appendleft)(seats[start : start + height])
    order = [0] * total
    for left, column in enumerate(columns):
        for row, place in enumerate(column):
            order[WINDOW * row % total + left] = place
    return tuple(order)
