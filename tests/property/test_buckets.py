"""Buckets of the hash: shares right to the bucket, only a lost ISP's buckets move, and few tests find an owner."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsmpy import buckets, tree
from lsmpy.buckets import BUCKETS, WIDTH
from lsmpy.netfilter import Chain
from lsmpy.tree import Block

pytestmark = pytest.mark.long

some_weights = st.lists(st.integers(1, 100), min_size=1, max_size=64).map(tuple)


@st.composite
def some_up(draw: st.DrawFn) -> tuple[tuple[int, ...], frozenset[int], frozenset[int]]:
    """Weights, who is up, and who of them is up later."""
    weights = draw(st.lists(st.integers(1, 10), min_size=2, max_size=12).map(tuple))
    up = draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    return weights, frozenset(up), frozenset(draw(st.sets(st.sampled_from(sorted(up)), min_size=1)))


@given(some_weights)
def test_with_all_up_each_share_is_right_to_the_bucket(weights: tuple[int, ...]) -> None:
    count = Counter(buckets.owners(weights, frozenset(range(len(weights)))))
    for place, weight in enumerate(weights):
        assert abs(count[place] - BUCKETS * weight / sum(weights)) < 1


@given(some_up())
def test_only_the_buckets_of_who_leaves_move(case: tuple[tuple[int, ...], frozenset[int], frozenset[int]]) -> None:
    weights, up, later = case
    before, after = buckets.owners(weights, up), buckets.owners(weights, later)
    assert len(before) == len(after) == BUCKETS
    assert set(before) <= up
    assert set(after) <= later
    assert all(one == two or one not in later for one, two in zip(before, after, strict=True))


def test_shares_stay_right_while_others_are_down() -> None:
    """Where half are down, to less than one in a hundred of all, of which 10,000 connections show nothing."""
    for weights in ((1, 1, 1), (5, 3, 2), (1, 1, 1, 1), (4, 3, 2, 1), (3, 1, 1, 2, 5)):
        for down in range(len(weights)):
            for other in range(len(weights)):
                up = frozenset(range(len(weights))) - {down, other}
                count = Counter(buckets.owners(weights, up))
                total = sum(weights[place] for place in up)
                for place in up:
                    assert abs(count[place] / BUCKETS - weights[place] / total) < 0.005


def walk(chains: list[Chain], value: int, width: int) -> tuple[str, int]:
    """Where a value comes to, and how many rules it meets on its way."""
    rules = {chain.name: chain.rules for chain in chains}
    chain, met = chains[0].name, 0
    while chain in rules:
        for rule in rules[chain]:
            met += 1
            test, _, target = rule.removeprefix(f"-A {chain} ").rpartition("-g ")
            start, length = map(int, test.split("/")) if test else (0, 0)
            if value >> width - length == start >> width - length:
                chain = target
                break
        else:
            return "", met
    return chain, met


@cache
def most_tests(cases: int) -> int:
    """What splitting as `tree.chains` promises can cost at worst: 23 for 256 cases, 31 for 1,024."""
    if cases <= 6:
        return cases
    most = max(6, cases // 3)
    return 1 + max(most_tests(rest) for part in range(most // 2 + 1, most + 1) for rest in (part, cases - part))


def plainly(block: Block) -> str:
    return f"{block.value}/{block.length} "


@given(some_up())
def test_the_tree_finds_the_owner_of_every_bucket(
    case: tuple[tuple[int, ...], frozenset[int], frozenset[int]],
) -> None:
    weights, up, _ = case
    owners = buckets.owners(weights, up)
    blocks = tree.blocks(owners, WIDTH)
    chains = tree.chains("T", [(block, f"of {owner}") for block, owner in blocks], WIDTH, plainly)
    for bucket, owner in enumerate(owners):
        found, met = walk(chains, bucket, WIDTH)
        assert found == f"of {owner}"
        assert met <= most_tests(len(blocks))


def test_hundreds_of_networks_cost_a_packet_few_tests() -> None:
    """Scattered ones, ones side by side, and ones each of which is beside the rest of all (the worst for halving)."""
    scattered = [ip_network(f"{n * 37 % 223 + 1}.{n * 91 % 256}.{n * 57 % 256}.0/24") for n in range(700)]
    beside = [ip_network(f"10.0.{n >> 7}.{n * 2 & 255}/31") for n in range(700)]
    staircase = [ip_network(f"2001:db8:{1 << n:x}::/{48 - n}") for n in range(16)]
    for networks, width, limit in ((scattered, 32, 24), (beside, 32, 24), (staircase, 128, 12)):
        cases = [(Block(int(net.network_address), net.prefixlen), f"of {net}") for net in networks]
        chains = tree.chains("T", dict(cases).items(), width, plainly, "nowhere")
        for block, target in dict(cases).items():
            found, met = walk(chains, block.value, width)
            assert found == target
            assert met <= limit, (met, len(networks))
        found, met = walk(chains, (1 << width) - 1, width)
        assert found == "nowhere"
        assert met <= limit
        assert all(re.fullmatch(r"T(-\d+)?", chain.name) for chain in chains)
