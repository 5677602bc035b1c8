"""What the contract promises of the router (section 4), held against the meaning of the rules of generated routers."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lsmpy import changes, choice, freeing, lookups, plan, resolve, shares
from lsmpy.model import AUTO, Family, Isp, Lan, Router
from lsmpy.netfilter import Table
from lsmpy.plan import Side
from lsmpy.routing import LOCAL_DEFAULT, Link
from tests.property.evaluator import UNREACHABLE, Connection, Netfilter, Packet, State, route
from tests.property.routers import CHOICES, SOMEWHERE, Scene, client, outside, scenes, sides, statuses

pytestmark = pytest.mark.long

dice = st.randoms(use_true_random=False)


def ways(scene: Scene) -> Iterator[tuple[Family, Side, Lan]]:
    """Every LAN with every family that reaches the internet."""
    for family, side in sides(scene.plan()).items():
        if scene.isps(family):
            for lan in scene.lans(family):
                yield family, side, lan


def outbound(
    lan: Lan, family: Family, connection: Connection | None, to: str = "", state: State = "NEW", mark: int = 0
) -> Packet:
    return Packet(client(lan, family), to or SOMEWHERE[family], connection, state, into=lan.interface, mark=mark)


def forward(rules: Netfilter, side: Side, packet: Packet, main: dict[str, str]) -> bool:
    """Prerouting, routing and postrouting; whether the packet has left the router by `packet.out`."""
    assert rules.mangle("PREROUTING", packet)
    packet.out = route(side, packet, main)
    return packet.out not in ("", UNREACHABLE) and rules.leave(packet)


def is_private(address: str) -> bool:
    """Whether no provider carries it; what is for documents only stands for those that they carry."""
    return any(ip_address(address) in ip_network(each) for each in ("10.0.0.0/8", "192.168.0.0/16", "fc00::/7"))


def of_mark(router: Router, mark: int) -> Isp:
    """The one ISP whose mark this is."""
    (isp,) = (isp for isp in router.isps if router.mark_value(isp) == mark & router.options.mark_mask)
    return isp


def chosen(scene: Scene, family: Family, rules: Netfilter, side: Side, packet: Packet) -> Isp:
    """To whom a new packet of a LAN is sent: by its one mark, or, where there is nothing to choose, by a rule."""
    assert rules.mangle("PREROUTING", packet)
    tables = {rule.table for rule in side.rules if rule.selector == f"iif {packet.into}"}
    assert len(packet.sets) + len(tables) == 1
    if packet.sets:
        return of_mark(scene.router, packet.mark)
    (isp,) = (isp for isp in scene.isps(family) if int(isp.table) in tables)
    return isp


# -- R1 ------------------------------------------------------------------------------------------------------


@given(scenes(), dice, st.integers(0, 0xFFFFFFFF))
def test_each_new_connection_is_sent_to_one_usable_isp_whatever_the_counters(
    scene: Scene, chance: random.Random, noise: int
) -> None:
    mask = scene.router.options.mark_mask
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        for _ in range(30):
            # What others have in both marks: nothing, one of them, the same, or what is different.
            here, there = (chance.choice([0, noise, ~noise]) & 0xFFFFFFFF & ~mask for _ in range(2))
            connection = Connection(mark=there)
            packet = outbound(lan, family, connection, mark=here)
            isp = chosen(scene, family, rules, side, packet)
            assert isp.name in scene.allowed(family)
            assert packet.mark & ~mask == here
            assert connection.mark == packet.mark & mask | there
            event("down" if not scene.states[isp.name].up else "up")
            event("by mark" if packet.sets else "by rule")


@given(scenes(), dice, st.data())
def test_a_new_connection_leaves_by_the_isp_it_was_sent_to_or_not_at_all(
    scene: Scene, chance: random.Random, data: st.DataObject
) -> None:
    default = data.draw(st.sampled_from(["", *(isp.interface for isp in scene.router.isps)]))
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        connection = Connection()
        isp = chosen(scene, family, rules, side, packet := outbound(lan, family, connection))
        left = forward(rules, side, packet, scene.main(family, default))
        assert packet.out in (isp.interface, UNREACHABLE)
        assert not left or of_mark(scene.router, connection.mark) is isp
        assert left == scene.has(isp.interface, str(isp.addresses(family)[0].ip))
        if left and isp.nat.kind(family) == "snat":
            assert packet.source == str(isp.addresses(family)[0].ip)
        if left and isp.nat.kind(family) == "npt":
            assert packet.source == outside(isp, client(lan, family))


@given(scenes(), dice)
def test_what_main_knows_a_better_route_for_goes_there(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        network = {4: "203.0.113.0/24", 6: "2001:db8:ffff::/48"}[family]
        devices = ["tun0", *(isp.interface for isp in scene.isps(family))]
        for device in devices:
            rules = Netfilter(side, scene.own(family), chance)
            for _ in range(4):  # whichever ISP's turn it is
                connection = Connection()
                main = scene.main(family) | {network: device}
                first, again = outbound(lan, family, connection), outbound(lan, family, connection)
                assert forward(rules, side, first, main)
                assert forward(rules, side, again, main)
                assert first.out == again.out == device


@given(scenes(), dice)
def test_hosts_in_an_isps_own_network_are_reached_through_it(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        for isp in scene.isps(family):
            gateway = str(isp.next_hop(family))
            if scene.has(isp.interface, str(isp.addresses(family)[0].ip)):
                for _ in range(4):
                    packet = outbound(lan, family, Connection(), to=gateway)
                    assert forward(rules, side, packet, scene.main(family))
                    assert packet.out == isp.interface


@given(scenes(), dice)
def test_traffic_between_lans_and_to_the_router_takes_no_mark_and_no_slot(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        before = rules.counts()
        others = [client(other, family) for other in scene.lans(family) if other is not lan]
        for target in (*others, *scene.own(family), {4: "224.0.0.251", 6: "ff02::fb"}[family]):
            connection = Connection()
            packet = outbound(lan, family, connection, to=target)
            assert rules.mangle("PREROUTING", packet)
            assert packet.mark == connection.mark == 0
        assert rules.counts() == before


@given(scenes(), dice, st.sampled_from(["flush", "unreachable"]), st.data())
def test_with_none_up_new_connections_go_by_main_or_are_refused_if_so_wished(
    scene: Scene, chance: random.Random, way: str, data: st.DataObject
) -> None:
    options = msgspec.structs.replace(scene.router.options, when_all_down=way)
    scene = dataclasses.replace(scene, router=msgspec.structs.replace(scene.router, options=options))
    for family, side, lan in ways(scene):
        default = data.draw(st.sampled_from(["", "tun0", *(isp.interface for isp in scene.isps(family))]))
        rules, main = Netfilter(side, scene.own(family), chance), scene.main(family, default)
        some_up = any(scene.states[i.name].up and scene.present(i, family) for i in scene.isps(family))
        first, again = (outbound(lan, family, Connection()) for _ in range(2))
        left = forward(rules, side, first, main)
        if some_up:
            assert chosen(scene, family, rules, side, again).name in scene.allowed(family)
            continue
        assert not first.sets
        assert first.out == (UNREACHABLE if way == "unreachable" else default)
        assert left == bool(first.out == default != "")
        by = next((isp for isp in scene.isps(family) if left and isp.interface == default), None)
        if by and by.nat.kind(family) == "snat":  # what main sends by an ISP has that ISP's address
            assert first.source == str(by.addresses(family)[0].ip)
        # Connections that are under way are not refused.
        isp = data.draw(st.sampled_from(scene.isps(family)))
        again.state, again.connection = "ESTABLISHED", Connection(scene.router.mark_value(isp), True)
        assert rules.mangle("PREROUTING", again)
        there = scene.has(isp.interface, str(isp.addresses(family)[0].ip))
        assert route(side, again, main) == (isp.interface if there else UNREACHABLE)
        # What main knows better is not, either.
        better = outbound(lan, family, Connection())
        assert forward(rules, side, better, main | {f"{SOMEWHERE[family]}": "tun1"})


# -- R2 ------------------------------------------------------------------------------------------------------


@given(scenes(), dice, st.data())
def test_a_connection_keeps_its_isp_through_rebuilds(scene: Scene, chance: random.Random, data: st.DataObject) -> None:
    later = sides(scene.plan(data.draw(statuses(scene.router))))
    for family, side, lan in ways(scene):
        connection = Connection()
        first = outbound(lan, family, connection)
        main = scene.main(family)
        left = forward(Netfilter(side, scene.own(family), chance), side, first, main)
        for state in ("NEW", "ESTABLISHED", "RELATED"):
            rules = Netfilter(later[family], scene.own(family), chance)
            before = rules.counts()
            again = outbound(lan, family, connection, state=state)
            if not left and not first.sets:
                continue  # nothing has left and nothing was marked: a rule may send the next try elsewhere
            assert forward(rules, later[family], again, main) == left
            assert (again.mark, again.out, again.source) == (connection.mark, first.out, first.source)
            assert rules.counts() == before


@given(scenes(), dice)
def test_answers_from_the_internet_find_the_lan(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules, main = Netfilter(side, scene.own(family), chance), scene.main(family)
        connection = Connection()
        asked = outbound(lan, family, connection)
        if forward(rules, side, asked, main):
            # Untranslated already: nat's prerouting stands between mangle's and the routing.
            answer = Packet(
                SOMEWHERE[family], client(lan, family), connection, "ESTABLISHED", into=asked.out, reply=True
            )
            assert forward(rules, side, answer, main)
            assert answer.out == lan.interface


@given(scenes(), dice)
def test_invalid_packets_take_no_slot_and_never_leave_untranslated(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        before = rules.counts()
        packet = outbound(lan, family, None, state="INVALID")
        assert rules.mangle("PREROUTING", packet)
        assert packet.mark == 0
        assert rules.counts() == before
        for isp in scene.isps(family):
            packet.out = isp.interface
            assert rules.mangle("POSTROUTING", packet) == (isp.nat.kind(family) == "none")


@given(scenes())
def test_packets_of_another_isps_connection_are_dropped(scene: Scene) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family))
        for isp in scene.isps(family):
            for other in scene.isps(family):
                connection = Connection(
                    scene.router.mark_value(other), True, str(other.addresses(family)[0].ip), translated=True
                )
                packet = outbound(lan, family, connection, state="ESTABLISHED")
                packet.out = isp.interface
                assert rules.mangle("POSTROUTING", packet) == (isp is other)


@given(scenes())
def test_connections_older_than_the_nat_are_dropped_where_it_is_on(scene: Scene) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family))
        for isp in scene.isps(family):
            connection = Connection(0, True, client(lan, family))
            packet = outbound(lan, family, connection, state="ESTABLISHED")
            packet.out = isp.interface
            assert rules.mangle("POSTROUTING", packet) == (isp.nat.kind(family) == "none")


@given(scenes())
def test_a_table_is_never_left_without_an_answer(scene: Scene) -> None:
    for family, side in sides(scene.plan()).items():
        for isp in scene.isps(family):
            mark = scene.router.mark_value(isp)
            packet = Packet(client(scene.router.lans[0], 4), SOMEWHERE[family], None, mark=mark)
            elsewhere = next(other.interface for other in scene.router.isps if other is not isp)
            assert route(side, packet, scene.main(family, default=elsewhere)) in (isp.interface, UNREACHABLE)
            last = max((each for each in side.routes if each.table == int(isp.table)), key=lambda each: each.metric)
            assert (last.kind, last.target, last.metric) == ("7", "default", 0xFFFFFFFF)


@given(scenes())
def test_every_isp_keeps_rules_table_and_nat_whether_up_or_down(scene: Scene) -> None:
    for family, side in sides(scene.plan()).items():
        for isp in scene.isps(family):
            selectors = {rule.selector for rule in side.rules if rule.table == int(isp.table)}
            mark, mask = scene.router.mark_value(isp), scene.router.options.mark_mask
            assert f"oif {isp.interface}" in selectors
            assert {f"from {each.ip}" for each in isp.addresses(family)} <= selectors
            assert f"fwmark {mark:#x}" + ("" if mask == 0xFFFFFFFF else f"/{mask:#x}") in selectors
            translates = any(f"-o {isp.interface} -j" in rule for rule in side.table("nat").rules)
            assert translates == (isp.nat.kind(family) != "none")


@given(scenes(), dice, st.data())
def test_by_an_isp_without_an_address_nothing_leaves_that_could_be_foreign(
    scene: Scene, chance: random.Random, data: st.DataObject
) -> None:
    """Whatever it is, and whatever was decided of it before; its rules and its table stay."""
    isps = tuple(msgspec.structs.replace(isp, address=(AUTO,), gateway=(AUTO,)) for isp in scene.router.isps)
    scene = dataclasses.replace(scene, router=msgspec.structs.replace(scene.router, isps=isps), links={})
    for family, side in sides(scene.plan()).items():
        rules = Netfilter(side, (), chance)
        for isp in isps:
            mark = data.draw(st.sampled_from([0, *map(scene.router.mark_value, isps)]))
            connection = data.draw(st.sampled_from([None, Connection(mark), Connection(mark, True, SOMEWHERE[family])]))
            source = client(scene.router.lans[0], 4) if family == 4 else "2001:db8:a0::77"
            packet = Packet(source, SOMEWHERE[family], connection, out=isp.interface, mark=mark)
            assert not rules.leave(packet) or isp.nat.kind(family) == "none"
            asked = Packet({4: "192.0.2.1", 6: "2001:db8:9::9"}[family], SOMEWHERE[family], None)
            asked.mark = scene.router.mark_value(isp)
            assert route(side, asked, scene.main(family, "tun0")) == UNREACHABLE


@given(scenes())
def test_what_is_followed_is_treated_as_what_a_file_says(scene: Scene) -> None:
    items = (*scene.router.isps, *scene.router.lans)
    links = {
        item.interface: Link(
            *(True, True, frozenset(text.split("/")[0] for text in item.address), 1500, item.address),
            hops=item.gateway if isinstance(item, Isp) else (),
        )
        for item in items
    }
    isps = tuple(
        # One address of each family; what is followed may be of both, and have others that were first before.
        msgspec.structs.replace(isp, address=(AUTO,), gateway=(AUTO,))
        if len(isp.addresses(4)) == len(isp.addresses(6))
        else isp
        for isp in scene.router.isps
    )
    followed = resolve.resolve(msgspec.structs.replace(scene.router, isps=isps), links)
    assert plan.build(followed, scene.states, links) == plan.build(scene.router, scene.states, links)


# -- R5 and R6 -----------------------------------------------------------------------------------------------


@given(scenes(), dice)
def test_what_comes_in_by_an_isp_is_answered_by_it(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules, main = Netfilter(side, scene.own(family), chance), scene.main(family)
        before = rules.counts()
        for isp in scene.isps(family):
            address = str(isp.addresses(family)[0].ip)
            there = scene.has(isp.interface, address)
            inside = client(lan, family)
            called = outside(isp, inside) if isp.nat.kind(family) == "npt" else address
            for host, hook, asked_for in ((inside, "PREROUTING", called), (address, "OUTPUT", address)):
                connection = Connection(confirmed=True, reply_to=SOMEWHERE[family], asked=asked_for)
                asked = Packet(SOMEWHERE[family], host, connection, into=isp.interface)
                assert rules.mangle("PREROUTING", asked)
                answer = Packet(host, SOMEWHERE[family], connection, "ESTABLISHED", reply=True)
                answer.into = lan.interface if hook == "PREROUTING" else ""
                assert rules.mangle(hook, answer)
                answer.out = route(side, answer, main)
                assert answer.out == (isp.interface if there else UNREACHABLE)
                assert not there or rules.leave(answer)
        assert rules.counts() == before


@given(scenes(), dice, st.booleans())
def test_who_calls_a_private_address_from_outside_hears_nothing_where_isps_translate(
    scene: Scene, chance: random.Random, secured: bool
) -> None:
    """R2, to the letter; but IPsec takes what is private into packets of its own."""
    for family, side, lan in ways(scene):
        rules, host = Netfilter(side, scene.own(family), chance), client(lan, family)
        for isp in scene.isps(family):
            connection = Connection(confirmed=True, reply_to=SOMEWHERE[family], asked=host)
            asked = Packet(SOMEWHERE[family], host, connection, into=isp.interface)
            assert rules.mangle("PREROUTING", asked)
            answer = Packet(host, SOMEWHERE[family], connection, "ESTABLISHED", out=isp.interface, reply=True)
            answer.secured = secured
            translating = isp.nat.kind(family) in ("snat", "masquerade")
            assert not translating or rules.leave(answer) == (secured or not is_private(host))


@given(scenes(), dice)
def test_a_bound_socket_of_the_router_uses_its_isp(scene: Scene, chance: random.Random) -> None:
    for family, side in sides(scene.plan()).items():
        rules, before = Netfilter(side, scene.own(family), chance), []
        for isp in scene.isps(family):
            address = str(isp.addresses(family)[0].ip)
            if not scene.has(isp.interface, address):
                continue
            elsewhere = next(other.interface for other in scene.router.isps if other is not isp)
            for device in ("", isp.interface):
                bound = Packet(address, SOMEWHERE[family], Connection(), into="lo", out=device)
                before = rules.counts()
                assert rules.mangle("OUTPUT", bound)
                bound.out = route(side, bound, scene.main(family, default=elsewhere))
                assert bound.out == isp.interface
                bound.source = address  # as the route says
                assert rules.leave(bound)
                assert rules.counts() == before


@given(scenes(), dice, st.booleans())
def test_what_the_router_begins_goes_by_one_isp_and_stays_there(
    scene: Scene, chance: random.Random, main_has: bool
) -> None:
    """Balanced among those that are up, from a LAN's address that is translated; or by main, from an ISP's."""
    balanced = scene.router.options.local_traffic == "balance"
    for family, side in sides(scene.plan()).items():
        rules = Netfilter(side, scene.own(family), chance)
        for isp in scene.isps(family):
            main = scene.main(family, isp.interface if main_has else "")
            asked = Packet({4: "0.0.0.0", 6: "::"}[family], SOMEWHERE[family], None, into="lo")  # connect()
            device = route(side, asked, main)
            ways = [each for each in side.routes if each.table == LOCAL_DEFAULT]
            if ways:
                assert balanced
                assert device == ways[0].device
            else:
                assert device == main.get("default", "")
            if not device:
                continue
            source = next((way.source for way in ways if way.source), "")
            carrier = next(each for each in scene.isps(family) if each.interface == device)
            connection, left = Connection(), set()
            for state in ("NEW", "NEW", "ESTABLISHED"):
                source = source or str(carrier.addresses(family)[0].ip)
                packet = Packet(source, SOMEWHERE[family], connection, state, into="lo", out=device)
                assert rules.mangle("OUTPUT", packet)
                packet.out = route(side, packet, main) if packet.mark else device
                if packet.out in ("", UNREACHABLE) or not rules.leave(packet):
                    continue
                by = of_mark(scene.router, connection.mark)
                assert packet.out == by.interface
                left.add(by.name)
                assert not ways or by.name in scene.allowed(family)
                assert by.nat.kind(family) != "snat" or packet.source == str(by.addresses(family)[0].ip)
            event(f"{'balanced' if ways and ways[0].source else 'by one'}: {len(left)}")
            assert len(left) <= 1


@given(scenes(), dice)
def test_what_the_router_says_to_its_lans_and_itself_takes_no_turn(scene: Scene, chance: random.Random) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        before = rules.counts()
        for target in (client(lan, family), *scene.own(family)):
            packet = Packet(str(lan.addresses(family)[0].ip), target, Connection(), into="lo")
            packet.out = route(side, packet, scene.main(family))
            assert rules.mangle("OUTPUT", packet)
            assert packet.mark == 0
        assert rules.counts() == before


# -- R9 and NPT ----------------------------------------------------------------------------------------------


def of_network(isp: Isp, chance: random.Random) -> str:
    """An address of a customer of the ISP, which is not the router's."""
    return str(chance.choice(isp.networks(6))[chance.randrange(256, 1 << 16)])


@given(scenes(), dice)
def test_without_translation_a_source_goes_by_the_isp_whose_it_is_and_takes_no_turn(
    scene: Scene, chance: random.Random
) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        elsewhere = chance.choice(["", *(isp.interface for isp in scene.isps(family))])
        known = [isp for isp in scene.isps(family) if family == 6 and isp.nat.ipv6 == "none"]
        usable = {i.name for i in known if scene.present(i, 6) and scene.states[i.name].up}
        usable = usable or {i.name for i in known if scene.present(i, 6)} or {i.name for i in known}
        for isp in known:
            before, connection = rules.counts(), Connection()
            packet = outbound(lan, family, connection)
            packet.source = source = of_network(isp, chance)
            assert rules.mangle("PREROUTING", packet)
            packet.out = route(side, packet, scene.main(family, elsewhere))
            assert rules.counts() == before
            passes = packet.out != UNREACHABLE and rules.passes(packet)
            assert passes == (isp.name in usable and scene.has(isp.interface, str(isp.addresses(6)[0].ip)))
            if passes:
                assert (packet.out, rules.leave(packet), packet.source) == (isp.interface, True, source)
                assert of_mark(scene.router, connection.mark) is isp
            elif any(scene.has(each.interface, str(each.addresses(6)[0].ip)) for each in known):
                assert packet.out != UNREACHABLE  # the sender is told why, not only that there is no way
            event("passes" if passes else "is told")


@given(scenes(), dice)
def test_never_does_ipv6_leave_by_an_isp_with_a_prefix_of_another(scene: Scene, chance: random.Random) -> None:
    """Whatever it is, wherever it is sent, and whatever was said of its connection before."""
    chance = random.Random(chance.random())
    for family, side, lan in ways(scene):
        if family == 4:
            continue
        isps = scene.isps(6)
        rules = Netfilter(side, scene.own(6), chance)
        for _ in range(30):
            source = chance.choice([client(lan, 6), *(of_network(isp, chance) for isp in isps)])
            mark = chance.choice([0, *map(scene.router.mark_value, isps)])
            known = Connection(mark, chance.random() < 0.5, asked=chance.choice(["", source]))
            known.reply_to = source if known.confirmed else ""
            packet = outbound(lan, 6, chance.choice([None, known, known]))
            packet.source, packet.state = source, "INVALID" if packet.connection is None else "ESTABLISHED"
            by = chance.choice(isps)
            # With SNAT, what has come in for an address that is nobody's outside is the user's own to answer.
            packet.reply = known.confirmed and bool(known.asked) and by.nat.ipv6 != "snat"
            packet.out = by.interface
            if not rules.leave(packet):
                continue
            others = [net for isp in isps if isp is not by for net in isp.networks(6)]
            assert not any(ip_address(packet.source) in net for net in others)
            if by.nat.ipv6 == "npt":
                assert any(ip_address(packet.source) in net for net in by.networks(6))


@given(scenes(), dice)
def test_a_prefix_translated_comes_in_to_its_hosts_and_nothing_else_goes_on(
    scene: Scene, chance: random.Random
) -> None:
    for family, side, lan in ways(scene):
        rules, main = Netfilter(side, scene.own(family), chance), scene.main(family)
        for isp in (isp for isp in scene.isps(family) if family == 6 and isp.nat.ipv6 == "npt"):
            connection = Connection()
            asked = Packet(SOMEWHERE[6], outside(isp, client(lan, 6)), connection, into=isp.interface)
            assert rules.enter(asked)
            assert asked.target == client(lan, 6)
            assert route(side, asked, main) == lan.interface
            connection.confirmed, connection.reply_to = True, SOMEWHERE[6]
            answer = Packet(client(lan, 6), SOMEWHERE[6], connection, "ESTABLISHED", into=lan.interface, reply=True)
            assert rules.mangle("PREROUTING", answer)
            answer.out = route(side, answer, main)
            if scene.has(isp.interface, str(isp.addresses(6)[0].ip)):
                assert (answer.out, rules.leave(answer)) == (isp.interface, True)
                assert answer.source == outside(isp, client(lan, 6))
            lost = Packet(SOMEWHERE[6], str(isp.prefixes(6)[0][77]), Connection(), into=isp.interface)
            assert rules.enter(lost)
            assert route(side, lost, main) == UNREACHABLE


# -- R4 ------------------------------------------------------------------------------------------------------


@given(scenes(), dice)
def test_answers_that_come_too_late_begin_no_connection(scene: Scene, chance: random.Random) -> None:
    """And nothing else is kept out, nor by any other ISP."""
    for family, side, lan in ways(scene):
        rules, isps = Netfilter(side, scene.own(family), chance), scene.isps(family)
        freed = chance.choice(isps)
        rules.recent = {f"LSMPY-{freed.name}"}
        for isp in isps:
            kind, host = isp.nat.kind(family), client(lan, family)
            late = Packet(SOMEWHERE[family], outside(isp, host) if kind == "npt" else host, Connection())
            hello = dataclasses.replace(late, protocol="tcp", flags="SYN", connection=Connection())
            to_us = dataclasses.replace(late, target=str(isp.addresses(family)[0].ip), connection=Connection())
            for packet in (late, hello, to_us):
                packet.into = isp.interface
            comes = rules.mangle("PREROUTING", late)
            assert comes == (isp is not freed or kind not in ("none", "npt"))
            assert rules.mangle("PREROUTING", hello)
            assert rules.mangle("PREROUTING", to_us)
            event("comes" if comes else "comes too late")


# -- R8 ------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(scenes(balances=["nth"]), st.integers(0, 300))
def test_any_hundred_connections_are_shared_by_weight(scene: Scene, start: int) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family))
        dealt: list[str] = []
        for _ in range(start + shares.WINDOW):
            packet = outbound(lan, family, Connection())
            dealt.append(chosen(scene, family, rules, side, packet).name)
        count = Counter(dealt[start:])
        weights = {isp.name: isp.weight for isp in scene.isps(family) if isp.name in scene.allowed(family)}
        for name, weight in weights.items():
            assert abs(count[name] - shares.WINDOW * weight / sum(weights.values())) <= 1


@settings(max_examples=30)
@given(scenes(balances=["random"]), dice)
def test_dice_give_everybody_about_his_share(scene: Scene, chance: random.Random) -> None:
    thrown = random.Random(chance.random())
    for family, side, lan in list(ways(scene))[:1]:
        rules, count = Netfilter(side, scene.own(family), thrown), Counter[str]()
        for _ in range(1000):
            packet = outbound(lan, family, Connection())
            count[chosen(scene, family, rules, side, packet).name] += 1
        weights = {isp.name: isp.weight for isp in scene.isps(family) if isp.name in scene.allowed(family)}
        for name, weight in weights.items():
            assert abs(count[name] - 1000 * weight / sum(weights.values())) < 100  # over six times the deviation


@settings(max_examples=30)
@given(scenes(balances=["hash"]), dice, st.data())
def test_a_pair_keeps_its_isp_and_moves_only_when_that_leaves(
    scene: Scene, chance: random.Random, data: st.DataObject
) -> None:
    later = scene.plan(states := data.draw(statuses(scene.router)))
    mask = scene.router.options.mark_mask
    for family, side, lan in ways(scene):
        one, two = (
            Netfilter(side, scene.own(family), chance),
            Netfilter(sides(later)[family], scene.own(family), chance),
        )
        tier = {isp.name: isp.tier for isp in scene.isps(family)}
        before, after = scene.allowed(family), scene.allowed(family, states)
        for host in range(100):
            to = str(ip_address(SOMEWHERE[family]) + host)
            names = []
            for rules, its in ((one, side), (one, side), (two, sides(later)[family])):
                packet = outbound(lan, family, Connection(), to=to, mark=chance.choice([0, 0xFFFFFFFF & ~mask]))
                names.append(chosen(scene, family, rules, its, packet).name)
            first, again, then = names
            assert first == again
            if {tier[name] for name in before} == {tier[name] for name in after}:
                assert then == first or first not in after or then not in before


# -- flush = "own" -------------------------------------------------------------------------------------------


@given(scenes(), dice, st.data())
def test_whoever_has_a_mark_that_no_isp_can_have_keeps_it_and_is_never_given_ours(
    scene: Scene, chance: random.Random, data: st.DataObject
) -> None:
    """Another program's mark that lies partly in our bits, as wg-quick's does; in the packet, perhaps in both."""
    if not scene.router.others_bits:
        options = msgspec.structs.replace(scene.router.options, flush="own", mark_mask=0xFFFFFFFF)
        scene = dataclasses.replace(scene, router=msgspec.structs.replace(scene.router, options=options))
    others = scene.router.others_bits
    mark = data.draw(st.integers(0, 0xFFFFFFFF)) & ~others | data.draw(st.sampled_from([others, others & -others]))
    rests = data.draw(st.booleans())
    for family, side, lan in ways(scene):
        for isp in (isp for isp in scene.isps(family) if scene.has(isp.interface, str(isp.addresses(family)[0].ip))):
            rules = Netfilter(side, scene.own(family), chance)
            connection = Connection(mark=mark if rests else 0)
            packet = outbound(lan, family, connection, mark=mark)
            packet.protocol, packet.flags = data.draw(st.sampled_from([("udp", ""), ("tcp", "SYN")]))
            assert rules.mangle("PREROUTING", packet)
            packet.out = route(side, packet, scene.main(family, isp.interface))
            if choice.by_rule(scene.isps(family)):
                continue  # a rule takes it to the one whose turn it is
            assert packet.out == isp.interface
            assert rules.passes(packet)
            assert rules.leave(packet)
            assert packet.mark == mark
            assert connection.mark == (mark if rests else scene.router.mark_value(isp))
            own = Packet(scene.own(family)[0], SOMEWHERE[family], connection, mark=mark)
            assert rules.mangle("OUTPUT", own)
            assert own.mark == mark


# -- R4 ------------------------------------------------------------------------------------------------------


def translates(scene: Scene, family: Family) -> bool:
    return any(isp.nat.kind(family) != "none" for isp in scene.isps(family))


@given(scenes(), dice, st.sampled_from(["ACK", "ACK,PSH"]))
def test_what_is_in_mid_stream_and_unknown_leaves_by_no_isp_that_could_translate_it_and_takes_no_slot(
    scene: Scene, chance: random.Random, flags: str
) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        before, connection = rules.counts(), Connection()
        packet = outbound(lan, family, connection)
        packet.protocol, packet.flags = "tcp", flags
        assert rules.mangle("PREROUTING", packet)
        packet.out = route(side, packet, scene.main(family))
        there = any(scene.has(isp.interface, str(isp.addresses(family)[0].ip)) for isp in scene.isps(family))
        if translates(scene, family):
            assert connection.mark == 0
            assert rules.counts() == before
            assert packet.out in (UNREACHABLE, *(isp.interface for isp in scene.isps(family)))
            assert packet.out == UNREACHABLE or not rules.passes(packet)
            event("told" if packet.out != UNREACHABLE else "unreachable")
        else:
            assert connection.mark == packet.mark
            assert packet.mark or choice.by_rule(scene.isps(family))
            assert rules.passes(packet)
        assert there or packet.out == UNREACHABLE


@given(scenes(), dice, st.sampled_from(["tun0", "LAN"]))
def test_what_is_in_mid_stream_and_leaves_by_no_isp_goes_on(scene: Scene, chance: random.Random, where: str) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        device = where
        to, main = (
            SOMEWHERE[family],
            scene.main(family) | {{4: "203.0.113.0/24", 6: "2001:db8:ffff::/48"}[family]: "tun0"},
        )
        if where == "LAN":
            other = next((each for each in scene.lans(family) if each is not lan), None)
            if other is None:
                continue
            to, device = client(other, family), other.interface
        packet = outbound(lan, family, Connection(), to)
        packet.protocol, packet.flags = "tcp", "ACK"
        assert rules.mangle("PREROUTING", packet)
        packet.out = route(side, packet, main)
        assert packet.out == device
        assert rules.passes(packet)


@given(scenes(), dice, st.booleans())
def test_what_the_router_has_in_mid_stream_is_refused_as_well_unless_it_has_chosen(
    scene: Scene, chance: random.Random, bound: bool
) -> None:
    """A socket of the router's that is bound to an ISP's address goes on by that one, with the same address."""
    for family, side in sides(scene.plan()).items():
        rules = Netfilter(side, scene.own(family), chance)
        for way in (each for each in side.routes if each.table == LOCAL_DEFAULT and each.source):
            (isp,) = (each for each in scene.isps(family) if each.interface == way.device)
            source = str(isp.addresses(family)[0].ip) if bound else str(way.source)
            before, connection = rules.counts(), Connection()
            packet = Packet(source, SOMEWHERE[family], connection, into="lo", out=isp.interface)
            packet.protocol, packet.flags = "tcp", "ACK"
            assert rules.mangle("OUTPUT", packet)
            packet.out = route(side, packet, scene.main(family)) if packet.mark else packet.out
            refused = translates(scene, family) and not bound
            event(f"refused: {refused}")
            assert rules.passes(packet, "OUTPUT") != refused
            assert not refused or (connection.mark, rules.counts()) == (0, before)


@given(scenes(), dice)
def test_a_socket_of_the_router_that_marks_itself_has_chosen_as_well(scene: Scene, chance: random.Random) -> None:
    for family, side in sides(scene.plan()).items():
        rules = Netfilter(side, scene.own(family), chance)
        for isp in scene.isps(family):
            mark, source = scene.router.mark_value(isp), str(isp.addresses(family)[0].ip)
            packet = Packet(source, SOMEWHERE[family], Connection(), into="lo", out=isp.interface, mark=mark)
            packet.protocol, packet.flags = "tcp", "SYN"
            assert rules.mangle("OUTPUT", packet)
            assert packet.mark == mark
            assert rules.passes(packet, "OUTPUT")


@given(scenes(), dice, st.sampled_from(["SYN", "SYN,ECE", "ACK"]))
def test_what_begins_or_is_known_is_never_refused(scene: Scene, chance: random.Random, flags: str) -> None:
    for family, side, lan in ways(scene):
        rules = Netfilter(side, scene.own(family), chance)
        connection = Connection()
        if flags == "ACK":  # the first packet was a SYN
            first = outbound(lan, family, connection)
            assert rules.mangle("PREROUTING", first)
            first.out = route(side, first, scene.main(family))
            if first.out == UNREACHABLE or not rules.leave(first):
                continue
        for state in ("NEW", "ESTABLISHED"):
            packet = outbound(lan, family, connection, state=state)
            packet.protocol, packet.flags = "tcp", flags
            assert rules.mangle("PREROUTING", packet)
            assert packet.mark == connection.mark
            assert packet.mark or (flags != "ACK" and choice.by_rule(scene.isps(family)))
            packet.out = route(side, packet, scene.main(family))
            assert rules.passes(packet)


@given(scenes(), dice)
def test_at_first_what_is_in_mid_stream_is_taken_up(scene: Scene, chance: random.Random) -> None:
    young = plan.build(scene.router, scene.states, scene.links, strays=True)
    for family, _, lan in ways(scene):
        side = sides(young)[family]
        rules = Netfilter(side, scene.own(family), chance)
        connection = Connection()
        for _ in range(2):
            packet = outbound(lan, family, connection)
            packet.protocol, packet.flags = "tcp", "ACK"
            assert rules.mangle("PREROUTING", packet)
            assert packet.mark == connection.mark
            assert packet.mark or choice.by_rule(scene.isps(family))
            packet.out = route(side, packet, scene.main(family))
            assert rules.passes(packet)
            connection.confirmed = True


@given(scenes(), st.data())
def test_exactly_who_goes_out_of_service_is_freed_and_listed_last(scene: Scene, data: st.DataObject) -> None:
    later = data.draw(statuses(scene.router))
    for live, want in zip(scene.plan().sides, scene.plan(later).sides, strict=True):
        isps = scene.isps(live.family)
        there = {isp.name for isp in isps if scene.present(isp, live.family)}
        was = {name for name in there if scene.states[name].up} or {isp.name for isp in isps}
        now = {name for name in there if later[name].up}
        step = changes.between(live, want)
        part = freeing.part(scene.router, live, step)
        assert set(part.gone) == (was - now if now else set())
        # Whoever is killed in between has it to do once more, with the rest done.
        if part.gone:
            early = {table.name: table for table in (*live.tables, *part.early.tables)}
            half = Side(live.family, tuple(early[table.name] for table in want.tables), want.routes, want.rules)
            again = freeing.part(scene.router, half, changes.between(half, want))
            assert again.gone == part.gone
            assert [c for c in half.table("mangle").chains if c.name != "LSMPY-DOWN"] == [
                c for c in part.late.tables[0].chains if c.name != "LSMPY-DOWN"
            ]
            assert [table.name for table in part.late.tables] == ["mangle"]
            assert part.late.tables[0] == want.table("mangle").with_policies(live.table("mangle").policies())
        else:
            assert part.early == step
        assert not freeing.part(scene.router, want, changes.between(want, want)).gone


# -- what depends on the states, and what does not -----------------------------------------------------------


def without_choices(table: Table) -> list[object]:
    free = CHOICES if table.name == "mangle" else ("LSMPY-LEAVING",)
    rules = {chain.name: () if chain.name.startswith(free) else chain.rules for chain in table.chains}
    return [each for each in rules.items() if not each[0].startswith("LSMPY-BUCKETS-")]


@given(scenes(with_policies=True), st.data())
def test_only_the_choice_for_new_connections_depends_on_the_states(scene: Scene, data: st.DataObject) -> None:
    one, two = scene.plan(), scene.plan(data.draw(statuses(scene.router)))
    assert one.sysctls == two.sysctls
    for a, b in zip(one.sides, two.sides, strict=True):
        assert [each for each in a.routes if each.table != LOCAL_DEFAULT] == [
            each for each in b.routes if each.table != LOCAL_DEFAULT
        ]
        assert [rule for rule in a.rules if rule.priority != lookups.BY_TIER] == [
            rule for rule in b.rules if rule.priority != lookups.BY_TIER
        ]
        assert [without_choices(table) for table in a.tables] == [without_choices(table) for table in b.tables]


@given(scenes())
def test_the_order_of_states_and_links_means_nothing(scene: Scene) -> None:
    states = dict(reversed(list(scene.states.items())))
    found = None if scene.links is None else dict(reversed(list(scene.links.items())))
    assert plan.build(scene.router, states, found) == scene.plan()


@given(scenes())
def test_no_two_routes_of_a_plan_replace_each_other(scene: Scene) -> None:
    for side in scene.plan().sides:
        assert len({each.key for each in side.routes}) == len(side.routes)
        assert len(set(side.rules)) == len(side.rules)


@given(scenes())
def test_a_family_that_no_isp_carries_is_left_alone(scene: Scene) -> None:
    assert {side.family for side in scene.plan().sides} == {
        f for isp in scene.router.isps for f in (4, 6) if isp.carries(f)
    }
