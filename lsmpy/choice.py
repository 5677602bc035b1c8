"""Who gets a new connection: the chains that send it to one of the candidates, by turns, by dice or by its hash.

However the counters stand and whatever the dice and the hash say, each packet comes to exactly one MARK chain (R1):
every test deals with a part of what the tests before have left, and the last rule takes the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from lsmpy import buckets, netfilter, shares, tree
from lsmpy.model import Family, Isp, Lan, Router
from lsmpy.netfilter import CHOOSE, MARK, PREFIX, Chain
from lsmpy.tree import Block

OWN = f"{PREFIX}CHOOSE"  # the choice for what the router itself begins
BY_HASH = f"{PREFIX}HASH"  # the chain that finds the ISP of a pair
_RANDOM_STEPS = 0x80000000  # resolution of the statistic match's probability
_SEED = 0x6C736D70  # of the hash; always the same, so that a pair keeps its ISP over restarts and changes of all else
_ALL = 0xFFFFFFFF
Isps = Sequence[Isp]


def by_rule(isps: list[Isp]) -> bool:
    """Whether there is nothing to choose, because each tier has one ISP (primary and backup).

    Then no new connection is marked: one rule of policy routing sends all to the table of the ISP whose turn it is
    ("you don't need all the fancy marking stuff", the article's last comment). Only the connection notes by which ISP
    it has left, so that it stays there when the primary is back (R2), and is answered where it came in (R5).
    """
    return len({isp.tier for isp in isps}) == len(isps)


def chains(router: Router, family: Family, lans: list[Lan], isps: list[Isp], candidates: Isps) -> list[Chain]:
    """One chain of choices for each LAN, one for the router itself if it is balanced, and what they share.

    Args:
        router: the configuration.
        family: 4 or 6.
        lans: those with addresses of the family.
        isps: those that carry it.
        candidates: those of them that may get new connections now; all of one tier.
    """
    names = [f"{CHOOSE}{lan.name}" for lan in lans] + [OWN] * (router.options.local_traffic == "balance")
    if by_rule(isps):
        return []
    if not candidates:
        return [Chain(name) for name in names]
    if router.options.balance == "hash":
        tier = [isp for isp in isps if isp.tier == candidates[0].tier]
        hashed = _hash(family, router.options.mark_mask, tier, candidates)
        return [*(Chain(name, None, (f"-A {name} -g {BY_HASH}",)) for name in names), *hashed]
    tests = _random if router.options.balance == "random" else _nth
    return [_cascade(name, candidates, tests(tuple(isp.weight for isp in candidates))) for name in names]


def _cascade(chain: str, candidates: Isps, tests: tuple[tuple[int, str], ...]) -> Chain:
    return Chain(chain, None, tuple(f"-A {chain} {test}-g {MARK}{candidates[place].name}" for place, test in tests))


@lru_cache
def _nth(weights: tuple[int, ...]) -> tuple[tuple[int, str], ...]:
    order = shares.slots(weights)
    left = range(len(order), 0, -1)
    return tuple(
        (place, f"-m statistic --mode nth --every {every} --packet 0 " if every > 1 else "")
        for place, every in zip(order, left, strict=True)
    )


@lru_cache
def _random(weights: tuple[int, ...]) -> tuple[tuple[int, str], ...]:
    tests, left = [], sum(weights)
    for place, weight in enumerate(weights):
        probability = round(_RANDOM_STEPS * weight / left) / _RANDOM_STEPS
        tests.append((place, f"-m statistic --mode random --probability {probability:.11f} " if weight < left else ""))
        left -= weight
    return tuple(tests)


# -- by hash -------------------------------------------------------------------------------------------------


def _hash(family: Family, mask: int, tier: Isps, candidates: Isps) -> list[Chain]:
    """HMARK hashes the pair of client and server into the mark, whose bits lead down a tree to the bucket's owner.

    Ports and protocol are left out, so that all that one client does with one server goes by one ISP.
    """
    length = 32 if family == 4 else 128
    prefixes = f"--hmark-src-prefix {length} --hmark-dst-prefix {length}"
    digest = f"-j HMARK {prefixes} --hmark-rnd {_SEED:#x} --hmark-mod {buckets.BUCKETS} --hmark-offset 0"
    up = frozenset(place for place, isp in enumerate(tier) if isp in candidates)
    owners = buckets.owners(tuple(isp.weight for isp in tier), up)
    found = _find(owners, tuple(f"{MARK}{isp.name}" for isp in tier))
    if mask == _ALL:
        return [_chain("HASH", digest, f"-g {PREFIX}BUCKETS"), *found]
    dice = _cascade(f"{PREFIX}DICE", candidates, _random(tuple(isp.weight for isp in candidates)))
    return [*_around_others_bits(_ALL & ~mask, (digest, f"-j {PREFIX}BUCKETS")), dice, *found]


def _around_others_bits(others: int, choose: tuple[str, ...]) -> list[Chain]:
    """HMARK writes all of the mark. What others have in it is put back, and rests in the connection meanwhile.

    There it must not overwrite what others have in the connection's mark: that is either nothing or the same. Of a
    packet with two marks of others that differ (nothing known to us makes such) the mark cannot be put back; it keeps
    both and goes by dice.
    """
    none, masks = netfilter.bits(0, others), f"--nfmask {others:#x} --ctmask {others:#x}"
    save, restore = f"-j CONNMARK --save-mark {masks}", f"-j CONNMARK --restore-mark {masks}"
    # The kernel's "save" is an exclusive or under the mask's bits: once it compares, twice it changes nothing.
    compare = f"-j CONNMARK --save-mark --nfmask {others:#x} --ctmask 0x0"
    return [
        _chain(
            "HASH",
            f"-m mark --mark {none} -g {PREFIX}HASH-NONE",
            f"-m connmark --mark {none} -g {PREFIX}HASH-PACKET",
            compare,
            f"-m connmark --mark {none} -g {PREFIX}HASH-SAME",
            compare,
            f"-g {PREFIX}DICE",
        ),
        _chain("HASH-NONE", *choose, f"-j MARK --set-xmark 0x0/{others:#x}"),
        _chain("HASH-PACKET", save, *choose, restore, f"-j CONNMARK --set-xmark 0x0/{others:#x}"),
        _chain("HASH-SAME", save, *choose, restore),
    ]


def _chain(name: str, *rules: str) -> Chain:
    return Chain(f"{PREFIX}{name}", None, tuple(f"-A {PREFIX}{name} {rule}" for rule in rules))


@lru_cache
def _find(owners: tuple[int, ...], targets: tuple[str, ...]) -> tuple[Chain, ...]:
    """The tree from a bucket to its owner; whoever has the most blocks gets what no test has caught."""
    blocks = tree.blocks(owners, buckets.WIDTH)
    most = Counter(owner for _, owner in blocks).most_common(1)[0][0]
    cases = [(block, targets[owner]) for block, owner in blocks if owner != most]
    return tuple(tree.chains(f"{PREFIX}BUCKETS", cases, buckets.WIDTH, _has_bits, targets[most]))


def _has_bits(block: Block) -> str:
    mask = buckets.BUCKETS - (buckets.BUCKETS >> block.length)
    return f"-m mark --mark {block.value:#x}/{mask:#x}"
