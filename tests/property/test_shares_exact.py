"""R8 as it is promised, for every set of weights that the configuration accepts."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

from hypothesis import example, given
from hypothesis import strategies as st

from lsmpy import shares


@st.composite
def accepted(draw: st.DrawFn) -> list[int]:
    """1 to 6 weights whose reduced sum is at most MAX_SLOTS, times a common divisor."""
    left, weights = shares.MAX_SLOTS, []
    count = draw(st.integers(1, 6))
    for place in range(count):
        weights.append(draw(st.integers(1, left - (count - place - 1))))
        left -= weights[-1]
    factor = draw(st.integers(1, 50))
    return [weight * factor for weight in weights]


def furthest(order: tuple[int, ...], place: int, weights: list[int]) -> Fraction:
    """How far `place` is from its share in the worst window of the endless repetition."""
    share = Fraction(shares.WINDOW * weights[place], sum(weights))
    endless = [order[i % len(order)] == place for i in range(len(order) + shares.WINDOW)]
    counts = [sum(endless[start : start + shares.WINDOW]) for start in range(len(order))]
    return max(abs(count - share) for count in counts)


@given(accepted())
@example([19, 33, 74, 1, 1])  # two whose shares are below one
@example([123, 1, 1, 1, 1, 1])  # more of them than a round of a hundred has room for
def test_any_hundred_connections_are_exact_to_one(weights: list[int]) -> None:
    order = shares.slots(weights)
    assert all(furthest(order, place, weights) <= 1 for place in range(len(weights)))


def test_any_hundred_connections_are_exact_to_one_for_all_small_weights() -> None:
    for count, highest in ((1, 9), (2, 12), (3, 6), (4, 3)):
        for weights in product(range(1, highest + 1), repeat=count):
            order = shares.slots(weights)
            assert all(furthest(order, place, list(weights)) <= 1 for place in range(count)), weights


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
