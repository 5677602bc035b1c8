"""Trees of chains: what a packet is, out of hundreds of cases, found by about as many tests as the count has bits.

A case is a block: all values that begin with certain bits, such as the addresses of a network. iptables tries the
rules of a chain one after another, so one chain of all cases would cost every packet as many tests as there are cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from lsmpy.netfilter import Chain

_FEW = 6  # cases that one chain holds
_WAYS = 3  # about as many parts are made of more; with two, chains would be nested deeper than nftables allows
# What nf_tables allows (NFT_JUMP_STACK_SIZE): chains on the way from the kernel's own to the last, gotos counted too.
DEEPEST = 16


class Block(Struct, frozen=True, order=True):
    """All values of `width` bits whose first `length` bits are those of `value`, the rest of which are 0."""

    value: int
    length: int


def chains(
    name: str, cases: Iterable[tuple[Block, str]], width: int, test: Callable[[Block], str], otherwise: str = ""
) -> list[Chain]:
    """Chains that send each packet to the chain of the case it is in; the first is called `name`, others `name-N`.

    A chain splits its cases, again and again: some block holds at most a third of them, and more than a sixth. A
    packet in it goes on in a chain of its own, another meets the next block in the same chain.

    Args:
        name: of the chain to be entered, and what the others' names begin with.
        cases: blocks that do not overlap, each with the chain of whom it belongs to.
        width: how many bits a value has.
        test: the match of a block.
        otherwise: the chain for packets that are in no block; empty to return from where the tree was entered.
    """
    made: list[Chain] = []
    todo = [(name, sorted(cases))]
    for chain, inside in todo:
        rules = []
        while len(inside) > _FEW:
            block = _largest(inside, max(_FEW, len(inside) // _WAYS), width)
            last = block.value + (1 << width - block.length)
            part = [case for case in inside if block.value <= case[0].value < last]
            inside = [case for case in inside if not block.value <= case[0].value < last]
            rules.append(f"-A {chain} {test(block)} -g {name}-{len(todo)}")
            todo.append((f"{name}-{len(todo)}", part))
        largest_first = sorted(inside, key=lambda case: case[0].length)
        rules += [f"-A {chain} {test(block)} -g {target}" for block, target in largest_first]
        rules += [f"-A {chain} -g {otherwise}"] if otherwise else []
        made.append(Chain(chain, None, tuple(rules)))
    return made


def _largest(cases: Sequence[tuple[Block, str]], most: int, width: int) -> Block:
    """A block that holds at most so many of the cases, and more than half as many."""
    value, length, inside = 0, 0, cases
    while len(inside) > most:
        length += 1
        bit = 1 << width - length
        ones = [case for case in inside if case[0].value & bit]
        zeros = [case for case in inside if not case[0].value & bit]
        inside, value = (ones, value | bit) if len(ones) > len(zeros) else (zeros, value)
    return Block(value, length)


def blocks(owners: Sequence[int], width: int) -> list[tuple[Block, int]]:
    """The fewest blocks that hold all values, each with its owner: that of value n is `owners[n]`."""

    def divide(value: int, length: int) -> Iterable[tuple[Block, int]]:
        size = 1 << width - length
        if len(set(owners[value : value + size])) == 1:
            yield Block(value, length), owners[value]
        else:
            yield from divide(value, length + 1)
            yield from divide(value | size >> 1, length + 1)

    return list(divide(0, 0))
