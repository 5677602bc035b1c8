"""R8 as it is promised, for every set of weights that the configuration accepts."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lsmpy import shares

pytestmark = pytest.mark.long


@st.composite
def accepted(draw: st.DrawFn) -> list[int]:
    """Any number of weights whose reduced sum is at most MAX_SLOTS, times a common divisor: runs of equal ones.

    Often many are 1, because small shares are what is hard.
    """
    left = shares.MAX_SLOTS
    weights: list[int] = []
    ones = draw(st.integers(0, left - 1))
    for _ in range(draw(st.integers(1, 8))):
        if sum(weights) + ones < left:
            weight = draw(st.integers(1, left - ones - sum(weights)))
            weights += [weight] * draw(st.integers(1, (left - ones - sum(weights)) // weight))
    weights += [1] * ones * draw(st.booleans())
    turn = draw(st.integers(0, len(weights) - 1))
    weights = weights[turn:] + weights[:turn]
    factor = draw(st.integers(1, 50))
    return [weight * factor for weight in weights]


def furthest(order: tuple[int, ...], place: int, weights: Sequence[int]) -> Fraction:
    """How far `place` is from its share in the worst window of the endless repetition."""
    share = Fraction(shares.WINDOW * weights[place], sum(weights))
    before = [0]  # how often `place` has had its turn before each slot
    for slot in range(len(order) + shares.WINDOW):
        before.append(before[-1] + (order[slot % len(order)] == place))
    counts = {before[start + shares.WINDOW] - before[start] for start in range(len(order))}
    return max(abs(count - share) for count in counts)


@given(accepted())
@example([19, 33, 74, 1, 1])  # two whose shares are below one
@example([123, 1, 1, 1, 1, 1])  # more of them than a round of a hundred has room for
@example([1] * 128)  # nobody has a whole share
@example([16, 11, 10, 6, 4, 2, *[1] * 79])  # some that may not give way to many small ones
def test_any_hundred_connections_are_exact_to_one(weights: list[int]) -> None:
    order = shares.slots(weights)
    assert all(furthest(order, place, weights) <= 1 for place in range(len(weights)))


def test_any_hundred_connections_are_exact_to_one_for_all_small_weights() -> None:
    for count, highest in ((1, 9), (2, 12), (3, 6), (4, 3)):
        for weights in product(range(1, highest + 1), repeat=count):
            order = shares.slots(weights)
            assert all(furthest(order, place, weights) <= 1 for place in range(count)), weights


@given(accepted())
def test_nobody_goes_without_and_a_round_fits(weights: list[int]) -> None:
    order = shares.slots(weights)
    assert set(order) == set(range(len(weights)))
    assert len(order) <= shares.MAX_SLOTS


@given(accepted(), st.integers(2, 9))
def test_only_the_ratio_counts(weights: list[int], factor: int) -> None:
    assert shares.slots(weights) == shares.slots([weight * factor for weight in weights])


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=64))
def test_what_is_offered_instead_fits_and_serves_everybody(weights: list[int]) -> None:
    offered = shares.nearest(weights)
    assert sum(offered) <= shares.MAX_SLOTS
    assert min(offered) >= 1
    assert shares.reduce(offered) == offered
    if sum(shares.reduce(weights)) <= shares.MAX_SLOTS:
        assert offered == shares.reduce(weights)
