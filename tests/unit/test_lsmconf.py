"""LSM's configuration: its grammar to the letter, what real ones say, and every mistake told at once."""

from __future__ import annotations

import os
import re
import socket
import string
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lsmpy import ConfigError, config, lsmconf, lsmmodel, moving
from lsmpy.lsmmodel import Connection, Group, Settings
from tests.unit.lsm_samples import NET_ISP_BALANCE, NETHSERVER, SHOREWALL, SHOREWALL_INCLUDED

ONE = "connection {\n name=c1\n checkip=192.0.2.1\n}\n"
DEBIAN = Path("/etc/lsm/lsm.conf"), Path("/usr/share/doc/lsm/examples/lsm.conf.sample")


def parse(text: str, source: str = "lsm.conf", **files: str) -> Settings:
    """As if the files of a directory were these, `a_conf` being a.conf."""
    named = {f"/d/{name.replace('_', '.')}": content for name, content in files.items()}

    def match(pattern: str) -> list[str] | None:
        return sorted(named) if pattern == "/d/*.conf" else [pattern] if pattern in named else []

    return lsmconf.parse(text, source, named.__getitem__, match)


def mistakes(text: str, **files: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, **files)
    return str(caught.value).splitlines()


def only(text: str) -> Connection:
    (connection,) = parse(text).connections
    return connection


# -- lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("name = a   b", "name", "a b"),
        ('name="x"', "name", '"x"'),
        ("\tname\t=\tc # and a # comment", "name", "c"),
        ("name=a#b", "name", "a"),
        ("name=a\r", "name", "a"),
        ("queue=a = b", "queue", "a=b"),
        ("sourceip=", "sourceip", ""),
        ("interval_ms=", "interval_ms", 10),
        ("ttl=2x", "ttl", 2),
        ("ttl=x2", "ttl", 0),
        ("max_successive_pkts_lost=-1", "max_successive_pkts_lost", -1),
        ("ttl= +7", "ttl", 7),
        ("ttl=300", "ttl", 255),
        ("ttl=-1", "ttl", 0),
        ("ttl=1 status=1", "ttl", 1),
        ("eventscript=/bin/a b", "eventscript", ("/bin/a b",)),
        ("eventscript=", "eventscript", ()),
        ("interval_ms=100000000000000", "interval_ms", 100_000_000_000_000),
        ("timeout_ms=0", "timeout_ms", 10),
        (f"interval_ms={'9' * 5000}", "interval_ms", 10**15),
        (f"long_down_time=-{'9' * 5000}", "long_down_time", 1 - 10**20),
        (f"ttl={'0' * 5000}7", "ttl", 7),
        ("status=9", "status", 2),
    ],
)
def test_a_line_means_what_lsm_takes_it_for(written: str, key: str, value: object) -> None:
    connection = only(f"connection {{\n checkip=192.0.2.1\n{written}\n}}\n")
    assert getattr(connection, key) == value


def test_what_a_number_has_besides_is_told() -> None:
    settings = parse("group {\n name=g\n logic=0  status=1\n member-connection=c1\n}\n" + ONE)
    assert settings.groups[0].logic == 0
    assert settings.groups[0].status == 2
    assert settings.warnings == ('lsm.conf:3: logic: "0 status=1" is taken for 0, as LSM does; give a number alone',)


USELESS = {
    "long_down_eventscript=/x": "long_down_eventscript: c1: has no effect without long_down_time",
    "long_down_notifyscript=/x": "long_down_notifyscript: c1: has no effect without long_down_time",
    "startup_burst_interval=50": "startup_burst_interval: c1: has no effect without startup_burst_pkts",
    "ttl=1\n check_arp=1": "ttl: c1: has no effect with check_arp, which is for neighbours",
    "device=eth0:1": "device: c1: probes leave by eth0, of which eth0:1 is another name; give its address as sourceip",
    "sourceip=192.0.2.9\n device=eth0:1": "device: c1: probes leave by eth0, of which eth0:1 is another name",
}


@pytest.mark.parametrize("line", USELESS)
def test_what_has_no_effect_is_told(line: str) -> None:
    (warning,) = parse(ONE.replace(" checkip", f" {line}\n checkip")).warnings
    assert warning.partition(": ")[2] == USELESS[line]
    place = 2 + line.count("\n") if line.startswith("sourceip") else 2
    assert warning.startswith(f"lsm.conf:{place + 1}: ")


@pytest.mark.parametrize(("debug", "told"), [(8, 0), (9, 1), (100, 1)])
def test_more_of_the_log_than_there_is_is_told(debug: int, told: int) -> None:
    settings = parse(f"debug={debug}\n{ONE}")
    assert settings.debug == debug
    assert len(settings.warnings) == told


def test_the_last_of_two_values_holds() -> None:
    assert only("connection {\n ttl=1\n ttl=2\n}\n").ttl == 2


def test_lsm_s_own_values_hold_without_others() -> None:
    connection = only("connection {\n}\n")
    assert connection == Connection(notifyscript="/usr/share/lsm/default_script", line="lsm.conf:1")
    assert parse(ONE, "/etc/foolsm/foolsm.conf").connections[0].notifyscript == "/usr/lib/foolsm/default_script"
    wanted = {"interval_ms": 1000, "timeout_ms": 1000, "max_packet_loss": 15, "max_successive_pkts_lost": 7}
    wanted |= {"min_packet_loss": 5, "min_successive_pkts_rcvd": 10, "status": 2, "long_down_time": 0}
    assert {key: getattr(connection, key) for key in wanted} == wanted
    assert (connection.name, connection.checkip, connection.warn_email) == ("defaults", "127.0.0.1", "root")


def test_defaults_hold_for_what_follows_and_add_up() -> None:
    text = "defaults {\n ttl=3\n warn_email=x\n}\nconnection {\n name=a\n}\n"
    text += "defaults {\n ttl=4\n}\nconnection {\n name=b\n ttl=5\n}\n"
    text += "group {\n name=g\n member-connection=a\n}\n"
    settings = parse(text)
    assert [(each.name, each.ttl, each.warn_email) for each in settings.connections] == [("a", 3, "x"), ("b", 5, "x")]
    assert settings.groups[0].warn_email == "x"


def test_groups_inherit_what_is_theirs() -> None:
    text = "defaults {\n eventscript=/e\n device=eth0\n queue=q\n status=1\n}\n" + ONE + "group {\n name=g\n}\n"
    group = parse(text).groups[0]
    assert (group.eventscript, group.queue, group.status, group.logic) == (("/e",), "q", 1, 0)
    assert group.device == ""  # no key of groups before 1.0.11
    assert parse(text, "foolsm.conf").groups[0].device == "eth0"


def test_members_may_be_defined_later_and_keep_their_order() -> None:
    text = "group {\n name=g\n member-connection=b\n member-connection=a\n}\n"
    settings = parse(text + "connection {\n name=a\n}\nconnection {\n name=b\n}\n")
    assert settings.groups[0].members == ("b", "a")


def test_a_group_may_have_a_name_that_is_taken_and_gets_no_state_file() -> None:
    text = ONE + "group {\n name=c1\n member-connection=c1\n}\n" + "group {\n}\n" * 2
    settings = parse(text)
    assert list(settings.named) == ["c1", "c1#1", "defaults", "defaults#3"]
    assert settings.warnings == (
        'lsm.conf:5: name: "c1" is the name of lsm.conf:1 already; this group gets no state file',
        'lsm.conf:11: name: "defaults" is the name of lsm.conf:9 already; this group gets no state file',
    )


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "2001:db8::1"), ("fe80::1%eth0", "fe80::1")),
        *(("127.1", "127.0.0.1"), ("127.000.000.001", "127.0.0.1"), ("010.0.0.1", "8.0.0.1"), ("0", "0.0.0.0")),
        *(("0x7f000001", "127.0.0.1"), ("0X7f.1", "127.0.0.1"), ("192.0.513", "192.0.2.1"), ("1.2.3.4.5", None)),
        *(("256.1", None), ("1.2.256.4", None), ("1.2.3.256", None), ("4294967296", None), ("08.1", None)),
        *(("", None), ("127.", None), ("1.2.3.4 x", None), ("9" * 5000, None), ("٣.1", None), ("1.2.3.4%eth0", None)),
    ],
)
def test_an_address_is_what_c_takes_for_one(text: str, meant: str | None) -> None:
    assert lsmmodel.address(text) == (meant and ip_address(meant))
    if meant is not None and ":" not in text:
        assert socket.inet_ntoa(socket.inet_aton(text)) == meant


def test_an_old_form_of_an_address_is_told() -> None:
    settings = parse(ONE.replace("192.0.2.1", "127.1"))
    assert (settings.connections[0].checkip, str(settings.connections[0].target)) == ("127.1", "127.0.0.1")
    assert settings.warnings == ('lsm.conf:3: checkip: "127.1" is taken for 127.0.0.1, as LSM does',)


# -- includes --------------------------------------------------------------------------------------------------


def test_included_files_stand_where_they_are_included() -> None:
    files = {"b_conf": "connection {\n name=b\n}\n", "a_conf": "defaults {\n ttl=9\n}\nconnection {\n name=a\n}\n"}
    settings = parse("include /d/*.conf\nconnection {\n name=c\n}\n-include /nowhere/x\n", **files)
    assert [(each.name, each.ttl, each.line) for each in settings.connections] == [
        ("a", 9, "/d/a.conf:4"),
        ("b", 9, "/d/b.conf:1"),
        ("c", 9, "lsm.conf:2"),
    ]


def test_files_are_matched_as_lsm_does(tmp_path: Path) -> None:
    for name, text in {"b.conf": ONE, "a.conf~": "x", ".c.conf": "", "local": "x"}.items():
        (tmp_path / name).write_text(text)
    main = tmp_path / "lsm.conf"
    main.write_text(f"include {tmp_path}/*.conf*\n")
    assert [line.partition(": ")[2] for line in told(main)] == [f"include: {main} includes itself; take it out"]
    main.write_text(f"include {tmp_path}/[.b]*.conf\n")
    assert [each.line for each in lsmconf.load(main).connections] == [f"{tmp_path}/b.conf:1"]
    main.write_text("include /x\0y/z\n-include /x\0y/z\n" + ONE)
    assert told(main) == [
        f"{main}:1: include: /x\0y/z: there is no such directory; name files that exist, or write -include"
    ]
    main.write_text(f"include {tmp_path}/none*\ninclude /nowhere/x\n-include /nowhere/x\n")
    assert told(main) == [
        f"{main}:1: include: {tmp_path}/none*: no file matches; name files that exist, or write -include",
        f"{main}:2: include: /nowhere/x: there is no such directory; name files that exist, or write -include",
    ]


def told(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        lsmconf.load(path)
    return str(caught.value).splitlines()


def test_what_cannot_be_included_is_told_and_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    main = tmp_path / "lsm.conf"
    main.write_text(f"include {tmp_path}/x\n{ONE}")
    (warning,) = lsmconf.load(main).warnings
    assert warning.startswith(f"{main}:1: include: can't open config file ")
    assert warning.endswith(": Is a directory")


def test_names_without_a_directory_are_the_daemon_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").write_text(ONE)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/lsm.conf").write_text("include more\n")
    assert lsmconf.load(Path("etc/lsm.conf")).connections[0].line == "more:1"


# -- mistakes --------------------------------------------------------------------------------------------------

BROKEN = {
    "no space": ("connection{\n", '1: connection{: "connection{": give a space before the brace'),
    "all on one line": ("connection { name=x\n", '1: connection: "connection { name=x": give a space before'),
    "unknown block": ("link {\n}\n", '1: link: unrecognised global config option "link {"'),
    "case": (
        ONE.replace(" name", " Name"),
        "2: connection.Name: unrecognised connection config option; did you mean name",
    ),
    "unknown key": (ONE.replace(" name", " nme"), "2: connection.nme: unrecognised connection config option; did you"),
    "no value": (ONE.replace(" name=c1", " name"), '2: connection: unrecognised connection config option "name"'),
    "key of a group": ("group {\n ttl=1\n}\n" + ONE, "2: group.ttl: unrecognised group config option; known are"),
    "key of a connection": (
        ONE.replace("name=c1", "logic=1"),
        "2: connection.logic: unrecognised connection config opt",
    ),
    "no end": (ONE.replace("}\n", ""), "3: connection: its block of lsm.conf:1 has no end; put a }"),
    "include inside": ("connection {\n include x\n}\n", '2: connection: unrecognised connection config option "inc'),
    "no address": (ONE.replace("192.0.2.1", "dns.example"), '3: connection.checkip: "dns.example" is no address; give'),
    "empty address": (ONE.replace("192.0.2.1", ""), '3: connection.checkip: "" is no address; give one'),
    "no source": (ONE.replace("name=c1", "sourceip=x"), '2: connection.sourceip: "x" is no address; give one of this'),
    "two families": (ONE.replace("name=c1", "sourceip=::1"), "2: connection.sourceip: ::1 is IPv6 and checkip is IPv4"),
    "arp in ipv6": (
        "connection {\n checkip=::2\n check_arp=1\n}\n",
        "3: connection.check_arp: ipv6 and arping are not",
    ),
    "flipping": (ONE.replace("name=c1", "max_packet_loss=5"), "2: connection.max_packet_loss: max_packet_loss (5) <="),
    "no member": (
        "group {\n member-connection=c2\n}\n" + ONE,
        '2: group.member-connection: connection group member "c2"',
    ),
    "two of a name": (ONE + ONE, '5: name: "c1" is the name of lsm.conf:1 already; give each its own'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_told_where_it_is(name: str) -> None:
    text, wanted = BROKEN[name]
    assert mistakes(text)[0].startswith(f"lsm.conf:{wanted}"), mistakes(text)


def test_all_mistakes_are_told_at_once_and_in_their_order() -> None:
    text = "connection {\n nme=x\n checkip=y\n}\nfoo\ngroup {\n name=g\n member-connection=z\n}\ninclude /d/a.conf\n"
    said = mistakes(text, a_conf="\n\nbar=1\n")
    assert [line.split(" ")[0] for line in said] == [
        "lsm.conf:2:",
        "lsm.conf:3:",
        "lsm.conf:5:",
        "lsm.conf:8:",
        "/d/a.conf:3:",
    ]


def test_a_file_that_is_included_twice_has_each_of_its_connections_twice() -> None:
    (said,) = mistakes("include /d/a.conf\n" * 2, a_conf=ONE)
    assert said.startswith('/d/a.conf:1: name: "c1" is the name of /d/a.conf:1 already')


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "defaults {\n ttl=1\n}\n"])
def test_nothing_to_probe_is_told_as_lsm_tells_it(text: str) -> None:
    with pytest.raises(ConfigError, match="no targets found in config file"):
        parse(text)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lsm\.conf: cannot read the configuration: No such file"):
        lsmconf.load(tmp_path / "lsm.conf")


@pytest.mark.parametrize(
    ("name", "text", "lsm"),
    [
        ("lsm.conf", ONE, True),
        ("lsm.conf", "", True),
        ("links", ONE, True),
        ("lsmpy.toml", "", False),
        ("router.conf", '  [[isp]]\nname = "x"\n', False),
    ],
)
def test_whose_configuration_it_is(name: str, text: str, lsm: bool) -> None:
    assert lsmconf.is_lsm(Path(name), text.encode()) is lsm


@given(st.text(alphabet=string.printable, max_size=200))
def test_whatever_it_holds_it_is_read_or_refused(text: str) -> None:
    said = "lsm.conf: no targets"
    try:
        parse(text)
    except ConfigError as error:
        said = str(error)
    assert all(re.match(r"lsm\.conf:(\d+: .+: .+| no targets)", line) for line in said.splitlines())


# -- real ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DEBIAN)
def test_debian_s_have_nothing_to_probe_as_they_are(path: Path) -> None:
    with pytest.raises(ConfigError):
        lsmconf.load(path)


def test_debian_s_sample_with_its_examples_in_use() -> None:
    text = DEBIAN[1].read_text()
    start = text.index("# connection {")
    text = text[:start] + re.sub(r"(?m)^# ((connection|group) \{|  .*|\}|$)", r"\1", text[start:])
    settings = parse(text)
    names = [f"connection-{n}" for n in range(1, 6)]
    assert [each.name for each in settings.connections] == [*names, "conn-a", "conn-b"]
    first, arp = settings.connections[0], settings.connections[4]
    assert (first.eventscript, first.warn_email, first.ttl) == (("/usr/share/lsm/conn1",), "root1@some.tld", 64)
    assert (arp.check_arp, arp.device, arp.sourceip) == (1, "eth0", "127.108.68.68")
    (group,) = settings.groups
    assert (group.name, group.members, group.logic) == ("conn-group-a", ("conn-a", "conn-b"), 0)
    assert settings.connections[5].eventscript == ()


def test_shorewall_s_documentation() -> None:
    settings = lsmconf.parse(
        SHOREWALL, "/etc/foolsm/foolsm.conf", lambda _: SHOREWALL_INCLUDED, lambda pattern: [pattern]
    )
    assert [(each.name, each.checkip, each.device, each.ttl) for each in settings.connections] == [
        ("Avvanta", "206.124.146.254", "eth0", 2),
        ("Comcast", "71.231.152.1", "eth1", 1),
    ]
    assert {(each.interval_ms, each.timeout_ms, each.max_packet_loss) for each in settings.connections} == {
        (2000, 2000, 20)
    }
    assert settings.connections[0].eventscript == ("/etc/foolsm/script",)
    assert settings.warnings == ()


def test_net_isp_balance_s() -> None:
    settings = parse(NET_ISP_BALANCE)
    assert [(each.name, each.device, each.sourceip, each.checkip) for each in settings.connections] == [
        ("CABLE", "eth0:1", "191.3.88.152", "191.3.88.1"),
        ("DSL", "ppp0", "", "112.211.154.198"),
    ]
    assert len(settings.warnings) == 1  # of the alias
    first = settings.connections[0]
    assert first.eventscript == (first.long_down_eventscript,) == ("/etc/network/load_balance.pl",)
    assert (first.long_down_time, first.timeout_ms, first.min_successive_pkts_rcvd) == (120, 500, 5)


def test_nethserver_s() -> None:
    settings = parse(NETHSERVER)
    dummy = next(each for each in settings.connections if each.name == "fake")
    assert (dummy.max_successive_pkts_lost, dummy.min_packet_loss, dummy.max_packet_loss) == (-1, -1, 0)
    assert dummy.interval_ms == 100_000_000_000_000
    (group,) = settings.groups
    assert (group.logic, group.members) == (0, ("red1-8.8.8.8", "red1-208.67.222.222"))
    assert len(settings.warnings) == 1


# -- there and back --------------------------------------------------------------------------------------------

TEXTS = st.text(alphabet=string.ascii_letters + string.digits + "-_./@ ", max_size=12).map(
    lambda text: " ".join(text.split())
)
NUMBERS = st.integers(-5, 200)


def connections(name: str) -> st.SearchStrategy[Connection]:
    strings = {key: TEXTS for key, hint in Connection.__annotations__.items() if hint == "str"}
    numbers = {key: NUMBERS for key, hint in Connection.__annotations__.items() if hint == "int"}
    own = {
        "name": st.just(name),
        "checkip": st.sampled_from(["192.0.2.1", "127.0.0.1"]),
        "sourceip": st.sampled_from(["", "192.0.2.9"]),
        "eventscript": st.one_of(st.just(()), st.tuples(TEXTS.filter(bool))),
        "unknown_up_notify": st.one_of(st.none(), st.integers(0, 1)),
        "min_packet_loss": st.integers(-5, 10),
        "max_packet_loss": st.integers(11, 100),
        "status": st.integers(0, 3),
        "ttl": st.integers(0, 255),
        "line": st.just(""),
    }
    sensible = {key: st.integers(10, 5000) for key in ("interval_ms", "timeout_ms", "startup_burst_interval")}
    return st.builds(Connection, **{**strings, **numbers, **sensible, **own})


@st.composite
def configurations(draw: st.DrawFn) -> Settings:
    names = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=4, unique=True))
    half = draw(st.integers(1, len(names)))
    links = tuple(draw(connections(name)) for name in names[:half])
    members = st.lists(st.sampled_from(names[:half]), max_size=3).map(tuple)
    groups = tuple(
        draw(st.builds(Group, name=st.just(name), members=members, logic=st.integers(-1, 2), warn_email=TEXTS))
        for name in names[half:]
    )
    return Settings("lsm", draw(st.integers(-1, 100)), links, groups, ())


def write(settings: Settings) -> str:
    """An lsm.conf that says it."""
    lines = [f"debug={settings.debug}"]
    for each in settings.everybody:
        lines.append(f"{type(each).__name__.lower()} {{")
        for key, value in structs.asdict(each).items():
            if key == "members":
                lines += [f"member-connection={member}" for member in value]
            elif key != "line" and value is not None:
                lines.append(f"{key}={''.join(value) if isinstance(value, tuple) else value}")
        lines.append("}")
    return "\n".join([*lines, ""])


def placeless(each: Connection | Group) -> Connection | Group:
    return structs.replace(each, line="")


@given(configurations(), st.randoms(use_true_random=False))
def test_what_is_written_is_read_again(settings: Settings, chance: object) -> None:
    text = "".join(noisy(line, chance) for line in write(settings).splitlines(True))
    read = parse(text)
    assert tuple(map(placeless, read.everybody)) == settings.everybody
    assert read.debug == settings.debug
    assert all("no effect" in each or "another name" in each or "says no more" in each for each in read.warnings)


def noisy(line: str, chance: object) -> str:
    """The same with white space and comments wherever LSM takes them."""
    spaces = chance.choice(["", " ", "\t", " \t  "])  # type: ignore[attr-defined]
    line = spaces + line.replace("=", f"{spaces}={spaces}", 1)
    return line.replace("\n", chance.choice(["\n", " # a = b {\n", "\r\n", "\n\n#x\n"]))  # type: ignore[attr-defined]


# -- lsmpy import ----------------------------------------------------------------------------------------------


def imported(settings: Settings) -> str:
    return moving.toml(settings, "lsm.conf")


@given(configurations())
def test_an_import_is_a_configuration_or_has_no_isp(settings: Settings) -> None:
    text = imported(settings)
    if "[[isp]]" in text:
        said = []
        try:
            config.parse(text.encode(), "lsmpy.toml", {}, probing=True)
        except ConfigError as error:
            said = str(error).splitlines()
        assert all("isp.interface: " in line for line in said), said  # which only a person can put right


def test_an_import_has_the_isps_with_their_thresholds() -> None:
    text = imported(parse(NETHSERVER))
    router = config.parse(text.encode(), "lsmpy.toml", {})
    (isp,) = router.isps
    assert (isp.name, isp.interface, isp.check, isp.quorum) == ("red1", "eth1", ("8.8.8.8", "208.67.222.222"), 1)
    assert (isp.probe.interval_ms, isp.probe.max_packet_loss, isp.probe.min_packet_loss) == (5000, 9, 8)
    assert "connection fake (checkip 127.0.0.1): no device tells whose it is" in text


def test_an_import_of_names_that_become_the_same_numbers_them() -> None:
    names = ["provider-number-one-line-A", "provider-number-one-line-B", "a/b", "a_b", "a b", "\udcff\0"]
    text = "".join(
        f"connection {{\n name={name}\n device=eth{n}\n checkip=192.0.2.{n}\n}}\n" for n, name in enumerate(names)
    )
    router = config.parse(imported(parse(text)).encode(), "lsmpy.toml", {}, probing=True)
    assert [isp.name for isp in router.isps] == [
        *("provider-number-one-", "provider-number-on-2"),
        *("a_b", "a_b-2", "a_b-3", "__"),
    ]


@pytest.mark.parametrize(
    "limits", ["max_packet_loss=0\n min_packet_loss=-1", "max_packet_loss=200\n min_packet_loss=90"]
)
def test_an_import_has_both_limits_of_losses_or_none(limits: str) -> None:
    text = imported(parse(f"connection {{\n device=eth0\n checkip=192.0.2.1\n {limits}\n}}\n"))
    (isp,) = config.parse(text.encode(), "lsmpy.toml", {}, probing=True).isps
    assert (isp.probe.max_packet_loss, isp.probe.min_packet_loss) == (15, 5)
    assert all(f"# lsm.conf:1: {key}" in text for key in ("max_packet_loss", "min_packet_loss"))


def test_an_import_takes_a_dummy_for_no_isp() -> None:
    text = imported(parse("connection {\n name=dummy\n device=lo\n}\nconnection {\n name=own\n device=eth0\n}\n"))
    assert "[[isp]]" not in text
    assert "connection dummy (checkip 127.0.0.1): asks this machine, so it is no ISP" in text
    assert "connection own (checkip 127.0.0.1): asks this machine, so it is no ISP" in text


def test_an_import_says_what_has_no_place() -> None:
    text = imported(parse(NET_ISP_BALANCE))
    router = config.parse(text.encode(), "lsmpy.toml", {})
    assert [(isp.name, isp.interface, isp.check) for isp in router.isps] == [
        ("CABLE", "eth0", ("191.3.88.1",)),
        ("DSL", "ppp0", ("112.211.154.198",)),
    ]
    assert "sourceip=191.3.88.152" in text
    assert "long_down_time=120" in text
    assert '# script = ["/etc/network/load_balance.pl"]' in text


def test_a_group_of_which_each_must_be_up_has_a_quorum_of_all() -> None:
    text = "".join(f"connection {{\n name=c{n}\n checkip=192.0.2.{n}\n device=eth1\n}}\n" for n in (1, 2))
    text += "group {\n name=g\n logic=1\n member-connection=c1\n member-connection=c2\n}\n"
    (isp,) = config.parse(imported(parse(text)).encode(), "lsmpy.toml", {}).isps
    assert (isp.name, isp.quorum) == ("g", 2)


def test_an_import_says_what_a_group_has_and_its_isp_has_not() -> None:
    text = "".join(
        f"connection {{\n name=c{n}\n checkip=192.0.2.{n}\n device=eth1\n interval_ms={n}000\n ttl={n - 1}\n}}\n"
        for n in (1, 2)
    )
    own = " notifyscript=/n\n warn_email=boss@example\n queue=router\n"
    said = imported(parse(f"{text}group {{\n name=g\n{own} member-connection=c1\n member-connection=c2\n}}\n"))
    assert "probe = {" not in said  # c1 has LSM's own
    assert "# lsm.conf:15: g: queue=router, warn_email=boss@example, notifyscript=/n\n" in said
    assert "# lsm.conf:8: c2: interval_ms=2000; the ISP has what c1 has\n" in said
    assert said.count("the ISP has what") == 1


def test_what_cannot_be_an_isp_s_is_told(tmp_path: Path) -> None:
    text = ONE + "connection {\n name=very long name of an ISP\n device=eth1\n max_packet_loss=200\n check_arp=1\n}\n"
    said = imported(parse(text))
    assert "# lsm.conf:1: connection c1 (checkip 192.0.2.1): no device tells whose it is" in said
    assert 'name = "very_long_name_of_an"  # very long name of an ISP' in said
    assert "max_packet_loss=200: Expected `int` <= 100" in said
    assert "# check_arp=1 asks for 127.0.0.1; here for the gateway" in said
    assert os.listdir(tmp_path) == []
