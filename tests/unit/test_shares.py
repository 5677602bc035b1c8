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


def test_many_small_ones_are_not_dealt_out_in_a_row() -> None:
    order = shares.slots([123, 1, 1, 1, 1, 1])
    places = [slot for slot, place in enumerate(order) if place]
    assert {order[slot] for slot in places} == {1, 2, 3, 4, 5}
    assert len(order) == 128
    assert min(two - one for one, two in pairwise([*places, places[0] + 128])) >= 16


@pytest.mark.parametrize(
    "weights",
    [
        [40, 29, 29, 7, 2, *[1] * 20],  # a sum of 127: no common divisor with 100
        [16, 11, 10, 6, 4, 2, *[1] * 79],  # 128: a common divisor of 4
        [33, 21, 12, 5, *[1] * 41],  # 112: 4
        [42, 12, 9, 4, 4, 3, *[1] * 41],  # 115: 5
        [16, 15, 5, 2, 2, *[1] * 70],  # 110: 10
        [41, 34, 27, 3, *[1] * 15],  # 120: 20
        [77, 14, 14, 7, *[1] * 13],  # 125: 25
    ],
)
def test_many_small_ones_do_not_push_the_others_off_their_share(weights: list[int]) -> None:
    order, total = shares.slots(weights), sum(weights)
    endless = order * 2
    assert len(order) == total > shares.WINDOW  # so that twice the round holds all windows
    for place, weight in enumerate(weights):
        counts = [endless[start : start + shares.WINDOW].count(place) for start in range(total)]
        assert all(abs(count * total - shares.WINDOW * weight) <= total for count in counts)


@pytest.mark.parametrize(
    ("weights", "offered"),
    [([100, 50], [2, 1]), ([100, 33], [3, 1]), ([1000, 1], [127, 1]), ([1, 1], [1, 1]), ([128, 1], [127, 1])],
)
def test_the_nearest_ratio_that_fits_is_offered(weights: list[int], offered: list[int]) -> None:
    assert shares.nearest(weights) == offered
