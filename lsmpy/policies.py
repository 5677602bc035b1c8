"""Policies: which traffic is not balanced, and to whom it is sent instead. The first that matches wins.

`LSMPY-POLICY` holds the tests of all policies in their order, `LSMPY-P-NAME` what becomes of the traffic of one. Only
the latter depends on the states. A policy of a few networks is a few rules; one of many has trees, in which a packet
meets few rules (`tree`), and which mark it if it matches. Whoever matches none is left unmarked, and balanced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import lru_cache
from itertools import product
from math import prod

from lsmpy import netfilter, tree
from lsmpy.model import Family, Network, Policy, Router, lowest_bit
from lsmpy.netfilter import MARK, POLICY, PREFIX, Chain
from lsmpy.tree import Block

ENTRY, _HIT = f"{PREFIX}POLICY", f"{PREFIX}HIT"
_FEW = 8  # rules of one policy that may stand in a row
_MOST_PORTS = 15  # of one multiport match, in which a range is two (xt_multiport.h, XT_MULTI_PORTS)


def chains(router: Router, family: Family, usable: Collection[str]) -> list[Chain]:
    """All chains of the policies.

    Args:
        router: the configuration.
        family: 4 or 6.
        usable: the names of the ISPs that may be used now.
    """
    if not router.policies:
        return []
    ways = tuple((lan.name, lan.interface) for lan in router.lans)
    tests = _tests(router.policies, ways, family, router.options.mark_mask)
    # A policy about networks of the other family has nothing to do here.
    led_to = {rule.rpartition(" -g ")[2] for chain in tests for rule in chain.rules}
    actions = (_action(policy, usable, router.options.mark_mask) for policy in router.policies)
    return [*tests, *(action for action in actions if action.name in led_to)]


def _action(policy: Policy, usable: Collection[str], mask: int) -> Chain:
    name = f"{POLICY}{policy.name}"
    isp = next((each for each in policy.use if each in usable), None)
    if isp:
        return Chain(name, None, (f"-A {name} -g {MARK}{isp}",))
    # Only the packet's mark: the connection may have its ISP as soon as there is one.
    mark = mask if policy.otherwise == "unreachable" else 0
    return Chain(name, None, (f"-A {name} -j MARK --set-xmark {mark:#x}/{mask:#x}",))


@lru_cache(maxsize=16)
def _tests(
    policies: tuple[Policy, ...], ways: tuple[tuple[str, str], ...], family: Family, mask: int
) -> tuple[Chain, ...]:
    trees: list[Chain] = []
    rules: list[str] = []
    for number, policy in enumerate(policies, 1):
        networks = {"s": policy.sources(family), "d": policy.targets(family)}
        lans = [f"-i {interface}" for name, interface in ways if name in policy.lan] or [""]
        services = list(_services(policy, family))
        many = prod(map(len, (*networks.values(), lans, services))) > _FEW
        long = {word: found for word, found in networks.items() if many and len(found) > 1}
        goal, found = f"-g {POLICY}{policy.name}", _trees(long, number)
        inline = ([""] if word in long else [_test(word, net) for net in nets] for word, nets in networks.items())
        for tests in product(*inline, lans, services):
            where = f"-j {found[0].name}" if found else goal
            rules.append(" ".join(word for word in (f"-A {ENTRY}", *tests, where) if word))
        rules += [f"-A {ENTRY} -m mark ! --mark {netfilter.bits(0, mask)} {goal}"] if found else []
        trees += found
    hit = f"-A {_HIT} -j MARK --set-xmark {lowest_bit(mask):#x}/{mask:#x}"
    return (Chain(ENTRY, None, tuple(rules)), *trees, *([Chain(_HIT, None, (hit,))] if trees else []))


def _trees(lists: dict[str, tuple[Network, ...]], number: int) -> list[Chain]:
    """A tree for each long list: whoever is in the source's comes to the target's, and in the end to a mark."""
    made: list[Chain] = []
    goal = _HIT
    for word, networks in reversed(lists.items()):
        kind, name = type(networks[0]), f"{PREFIX}{'FROM' if word == 's' else 'TO'}-{number}"
        cases = [(Block(int(net.network_address), net.prefixlen), goal) for net in networks]

        def test(block: Block, word: str = word, kind: type[Network] = kind) -> str:
            return _test(word, kind((block.value, block.length)))

        made = [*tree.chains(name, cases, networks[0].max_prefixlen, test), *made]
        goal = name
    return made


def _test(word: str, network: Network) -> str:
    return f"-{word} {network}" if network.prefixlen else ""


def _services(policy: Policy, family: Family) -> Iterator[str]:
    """Tests of protocols and destination ports, as few as hold all; one that is empty if there are none to test."""
    ports = [tuple(part) for part in _parts(policy)]
    for protocol in policy.protocol or [""]:
        name = "ipv6-icmp" if (protocol, family) == ("icmp", 6) else protocol
        for part in ports or [()]:
            yield (f"-p {name}" if name else "") + (f" -m multiport --dports {','.join(part)}" if part else "")


def _parts(policy: Policy) -> Iterator[list[str]]:
    """The ports in parts that one match can hold."""
    part: list[str] = []
    room = _MOST_PORTS
    for first, last in policy.port_ranges:
        size = 1 if first == last else 2
        if size > room:
            yield part
            part, room = [], _MOST_PORTS
        part.append(str(first) if first == last else f"{first}:{last}")
        room -= size
    if part:
        yield part
