"""Shares by hand: the article's halves, three lines of different speed, and what is offered instead."""

from itertools import pairwise

import pytest

from lsmpy import shares


@pytest.mark.parametrize(
    ("weights", "order"),
    [([1], [0]), ([7], [0]), ([1, 1], [0, 1]), ([5, 5], [0, 1]), ([3, 1], [0, 0, 1, 0]), ([1, 1, 1, 1], [0, 1, 2, 3])],
)
def test_a_round_is_as_short_as_the_ratio_and_interleaved(weights: list[int], order: list[int]) -> None:
    assert list(shares.slots(weights)) == order


def test_five_three_two_is_spread_out() -> None:
    order = shares.slots([5, 3, 2])
    assert [order.count(place) for place in range(3)] == [5, 3, 2]
    assert all(one != two for one, two in pairwise(order) if one != 0)


def test_where_no_even_round_is_exact_it_is_a_hundred_long_and_nobody_goes_without() -> None:
    order = shares.slots([19, 33, 74, 1, 1])
    assert [order.count(place) for place in range(5)] == [15, 25, 58, 1, 1]


def test_many_small_ones_take_turns_in_slots_that_are_spread() -> None:
    order = shares.slots([123, 1, 1, 1, 1, 1])
    places = [slot for slot, place in enumerate(order) if place]
    assert [order[slot] for slot in places] == [1, 2, 3, 4, 5]
    assert all(25 <= two - one <= 26 for one, two in pairwise(places))


@pytest.mark.parametrize(
    ("weights", "offered"),
    [([100, 50], [2, 1]), ([100, 33], [3, 1]), ([1000, 1], [127, 1]), ([1, 1], [1, 1]), ([128, 1], [127, 1])],
)
def test_the_nearest_ratio_that_fits_is_offered(weights: list[int], offered: list[int]) -> None:
    assert shares.nearest(weights) == offered
