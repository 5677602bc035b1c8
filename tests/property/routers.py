"""Routers of every kind, generated as the text of valid configurations, and what may happen to them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec
from hypothesis import assume
from hypothesis import strategies as st

from lsmpy import plan, state
from lsmpy.model import Family, Isp, Lan, Policy, Protocols, Router
from lsmpy.plan import Plan, Side
from lsmpy.routing import Link
from lsmpy.state import Status
from tests.conftest import router_of

FAMILIES: tuple[Family, ...] = (4, 6)
SOMEWHERE: Mapping[Family, str] = {4: "203.0.113.9", 6: "2001:db8:ffff::9"}
TEXTS = (None, "up", "down", "long_down", "", "Up", "rubbish")
BALANCES = ("nth", "random", "hash")
LEAVING = "LSMPY-LEAVING"
# What the chains that depend on the states are called.
CHOICES = ("LSMPY-C-", "LSMPY-CHOOSE", "LSMPY-P-", "LSMPY-BUCKETS", "LSMPY-DICE", "LSMPY-STRAY", "LSMPY-DOWN", LEAVING)
MASKS = (0xFFFFFFFF, 0xFF00, 0xF0, 0x7)


@dataclass(frozen=True)
class Scene:
    """A router, what its state files say, and the links that it has (None: all)."""

    router: Router
    states: Mapping[str, Status]
    links: Mapping[str, Link] | None

    def plan(self, states: Mapping[str, Status] | None = None) -> Plan:
        return plan.build(self.router, states or self.states, self.links)

    def isps(self, family: Family) -> list[Isp]:
        return [isp for isp in self.router.isps if isp.carries(family)]

    def lans(self, family: Family) -> list[Lan]:
        return [lan for lan in self.router.lans if lan.addresses(family)]

    def present(self, isp: Isp, family: Family) -> bool:
        """Whether the kernel can send by this ISP now."""
        if self.links is None:
            return True
        link = self.links.get(isp.interface)
        return bool(link and link.up and link.carrier and str(isp.addresses(family)[0].ip) in link.addresses)

    def has(self, interface: str, address: str) -> bool:
        """Whether the interface is up and has the address, and so the kernel its routes."""
        if self.links is None:
            return True
        link = self.links.get(interface)
        return bool(link and link.up and address in link.addresses)

    def usable(self, family: Family) -> set[str]:
        """Who may be used at all: who is up, or with none up who is there, or everybody."""
        there = [isp for isp in self.isps(family) if self.present(isp, family)]
        up = [isp for isp in there if self.states[isp.name].up]
        return {isp.name for isp in up or there or self.isps(family)}

    def allowed(self, family: Family, states: Mapping[str, Status] | None = None) -> set[str]:
        """Who may be given new connections: R1, with the tiers, and the article's site that must not be cut off."""
        isps, known = self.isps(family), states or self.states
        there = [isp for isp in isps if self.present(isp, family)]
        best = [isp for isp in there if known[isp.name].up] or there or isps
        return {isp.name for isp in best if isp.tier == min(each.tier for each in best)}

    def own(self, family: Family) -> list[str]:
        items = (*self.router.isps, *self.router.lans)
        return [str(each.ip) for item in items for each in item.addresses(family)]

    def main(self, family: Family, default: str = "") -> dict[str, str]:
        """The main table: the connected networks of what is there, and perhaps a default by one interface."""
        table = {
            str(each.network): item.interface
            for item in (*self.router.isps, *self.router.lans)
            for each in item.addresses(family)
            if self.has(item.interface, str(each.ip))
        }
        return table | ({"default": default} if default else {})


@st.composite
def routers(draw: st.DrawFn, most_isps: int = 6, least_isps: int = 2, balances: Sequence[str] = BALANCES) -> Router:
    """2 to 6 ISPs and 1 to 3 LANs, of either family or both."""
    mask = draw(st.sampled_from(MASKS))
    text = f"[router]\nflush = '{draw(st.sampled_from(('all', 'own')))}'\n"
    text += f"balance = '{draw(st.sampled_from(balances))}'\nmark_mask = {mask:#x}\n"
    text += f"local_traffic = '{draw(st.sampled_from(['main', 'balance']))}'\n"
    nat4, nat6 = draw(st.sampled_from(["snat", "masquerade", "none"])), draw(st.sampled_from(["none", "snat", "npt"]))
    text += f"[nat]\nipv4 = '{nat4}'\nipv6 = '{nat6}'\n"
    count = draw(st.integers(least_isps, most_isps))
    highest = mask // (mask & -mask)
    marks = draw(st.lists(st.integers(1, min(highest, 1000)), min_size=count, max_size=count, unique=True))
    tables = draw(st.lists(st.integers(77, 252), min_size=count, max_size=count, unique=True))
    equal = draw(st.booleans())
    for place in range(count):
        four, six = draw(st.sampled_from([(1, 1), (1, 0), (0, 1), (2, 1)]))
        addresses = [f"10.0.{place}.{host}/24" for host in range(1, four + 1)] + [f"2001:db8:{place}::1/64"] * six
        gateways = [f"10.0.{place}.254"] * bool(four) + [f"2001:db8:{place}::fe"] * six
        text += f"[[isp]]\nname = 'I{place}'\ninterface = 'wan{place}'\naddress = {addresses}\ngateway = {gateways}\n"
        text += f"prefix = {[f'2a0{place}::/32'] if six else []}\n"
        text += f"check = 'gateway'\nmark = {marks[place]}\ntable = {tables[place]}\n"
        text += f"weight = {1 if equal else draw(st.integers(1, 20))}\ntier = {draw(st.sampled_from([1, 1, 1, 2]))}\n"
    for place in range(draw(st.integers(1, 3))):
        six = draw(st.booleans())
        addresses = [f"192.168.{place}.1/24"] + [f"2001:db8:a{place}::1/64"] * six
        text += f"[[lan]]\nname = 'L{place}'\ninterface = 'lan{place}'\naddress = {addresses}\n"
    return router_of(text)


def networks(family: Family) -> list[str]:
    """Hundreds of networks, some of them inside others, and some beside each other."""
    if family == 4:
        small = [f"198.51.{place}.{start}/26" for place in range(64) for start in (0, 64, 192)]
        return [*small, "198.51.16.0/20", "198.51.100.7", "198.51.100.8/31", "198.51.0.0/16"]
    return [*(f"2001:db8:5{place:03x}::/48" for place in range(200)), "2001:db8:5000::/40", "2001:db8:7::1"]


@st.composite
def policies(draw: st.DrawFn, router: Router) -> list[Policy]:
    """Some that overlap: the first that matches wins."""
    made, chance = [], random.Random(draw(st.integers()))
    for place in range(draw(st.integers(1, 5))):
        lists: dict[str, tuple[str, ...]] = {}
        for key in ("to", "from_"):
            universe = (
                [*networks(4), *networks(6)]
                if key == "to"
                else ["192.168.0.64/27", "192.168.1.0/25", "2001:db8:a0::/64", *(f"192.168.{n}.77" for n in range(9))]
            )
            how_many = draw(st.sampled_from([0, 1, 3, 150]))
            lists[key] = tuple(chance.sample(universe, min(how_many, len(universe))))
        protocols: Protocols = draw(st.sampled_from([(), ("tcp",), ("udp", "tcp"), ("icmp",)]))
        numbers = st.lists(st.sampled_from([53, 443, 7777, "1-1023", "5060-5080", *range(8000, 8040, 2)]), max_size=20)
        made.append(
            Policy(
                name=f"P{place}",
                use=tuple(draw(st.lists(st.sampled_from([isp.name for isp in router.isps]), min_size=1, unique=True))),
                lan=tuple(draw(st.sets(st.sampled_from([lan.name for lan in router.lans])))),
                protocol=protocols,
                ports=tuple(draw(numbers)) if protocols and "icmp" not in protocols else (),
                otherwise=draw(st.sampled_from(["balance", "unreachable"])),
                **lists,
            )
        )
    return made


@st.composite
def statuses(draw: st.DrawFn, router: Router) -> dict[str, Status]:
    """What state and force files may say of each ISP."""
    return {
        isp.name: state.judge(draw(st.sampled_from(TEXTS)), draw(st.sampled_from([None, None, None, "up", "down"])))
        for isp in router.isps
    }


@st.composite
def links(draw: st.DrawFn, router: Router) -> dict[str, Link] | None:
    """The kernel's interfaces: some ISPs' may be missing, down, without carrier or without addresses."""
    if draw(st.booleans()):
        return None
    found = {}
    for item in (*router.isps, *router.lans):
        addresses = frozenset(str(ip_address(text.split("/")[0])) for text in item.address)
        fault = draw(st.sampled_from(["", "", "", "missing", "down", "unplugged", "bare", "without IPv4"]))
        if isinstance(item, Lan):
            fault = ""
        if fault == "bare":
            addresses = frozenset()
        if fault == "without IPv4":
            addresses = frozenset(each for each in addresses if ":" in each)
        if fault != "missing":
            found[item.interface] = Link(fault != "down", fault != "unplugged", addresses)
    return found


@st.composite
def scenes(
    draw: st.DrawFn,
    most_isps: int = 6,
    least_isps: int = 2,
    balances: Sequence[str] = BALANCES,
    with_policies: bool = False,
) -> Scene:
    """Everything that a plan is made of."""
    router = draw(routers(most_isps, least_isps, balances))
    if with_policies:
        router = msgspec.structs.replace(router, policies=tuple(draw(policies(router))))
        assume(router.refusal not in {router.mark_value(isp) for isp in router.isps})
    return Scene(router, draw(statuses(router)), draw(links(router)))


def client(lan: Lan, family: Family) -> str:
    """The address of a host in the LAN."""
    return str(lan.addresses(family)[0].network[77])


def outside(isp: Isp, address: str) -> str:
    """What an address of the LANs is called outside if the ISP translates it one to one."""
    return str(isp.prefixes(6)[0][int(ip_address(address)) & (1 << 96) - 1])


def sides(made: Plan) -> dict[Family, Side]:
    return {side.family: side for side in made.sides}
