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


def test_where_no_even_round_is_exact_it_is_a_hundred_long() -> None:
    assert len(shares.slots([61, 41, 17])) in (shares.WINDOW, 119)
    assert shares.slots([100, 1, 1]).count(1) == 1


@pytest.mark.parametrize(
    ("weights", "offered"),
    [([100, 50], [2, 1]), ([100, 33], [3, 1]), ([1000, 1], [127, 1]), ([1, 1], [1, 1]), ([128, 1], [127, 1])],
)
def test_the_nearest_ratio_that_fits_is_offered(weights: list[int], offered: list[int]) -> None:
    assert shares.nearest(weights) == offered
