"""Buckets: which ISP each of a fixed number of hash values belongs to, while which of them are up (`balance = "hash"`).

Every bucket has its own order of all ISPs, and belongs to the first of them that is up. So when an ISP leaves, only
its own buckets move, and they come back with it: the property of rendezvous hashing (Thaler and Ravishankar, 1998).
Orders by hashed scores would make the shares a matter of luck (of 1,024 buckets, one of two equal ISPs usually has
1.6 % too many, which 10,000 flows show). Here the orders are dealt out, so that shares are right to the bucket, and
the buckets of an ISP lie side by side, so that few tests tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

WIDTH = 10  # bits of a bucket's number
BUCKETS = 1 << WIDTH  # a share is right to a thousandth; the tests that find a bucket are hardly more than for 256

_STEPS = 1 << 16
_GOLDEN = 40503  # the golden ratio's part of _STEPS: its multiples are spread as evenly as can be (Knuth 6.4)


@lru_cache
def owners(weights: tuple[int, ...], up: frozenset[int]) -> tuple[int, ...]:
    """The owner of each bucket, as a place in `weights`.

    Args:
        weights: of all that can ever be chosen among, up or not.
        up: the places of those that are to get something; at least one.
    """
    return tuple(_deal(0, BUCKETS, tuple(range(len(weights))), weights, up))


def _deal(
    start: int, size: int, places: tuple[int, ...], weights: tuple[int, ...], up: frozenset[int]
) -> Iterator[int]:
    """Divide the buckets from `start` on by weight; the part of one that is down is divided among the others."""
    total = sum(weights[place] for place in places)
    # What rounding leaves over must not fall to the same one in all of many small parts.
    shift = start * len(places) * _GOLDEN % _STEPS
    weight = dealt = 0
    for place in places:
        weight += weights[place]
        end = (size * weight * _STEPS + shift * total) // (total * _STEPS)
        if place in up:
            yield from [place] * (end - dealt)
        elif end > dealt:
            others = tuple(each for each in places if each != place)
            yield from _deal(start + dealt, end - dealt, others, weights, up)
        dealt = end
