"""Who else has rules on a router: Debian's ufw, firewalld and fail2ban, and Docker's tables, as it leaves them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from lsmpy import command
from lsmpy.lab import ROUTER, wait_until
from tests.conftest import ROOT
from tests.lab.router_kit import Rig

UNPACKED = ROOT / ".venv" / "unpacked"  # by scripts/test
_PYTHON = ("env", f"PYTHONPATH={UNPACKED}/usr/lib/python3/dist-packages", "/usr/bin/python3")
OURS = re.compile(r"LSMPY-|[ :](MARK|OUT|IN|CHOOSE|POLICY)-")
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>
"""


_FIREWALLD = {
    "zones/internal": '<zone><interface name="eth0"/><interface name="eth1"/><service name="ssh"/></zone>\n',
    "zones/external": '<zone><interface name="eth2"/><interface name="eth3"/><masquerade/></zone>\n',
    "policies/out": (
        '<policy target="ACCEPT"><ingress-zone name="internal"/><egress-zone name="external"/></policy>\n'
    ),
}


def theirs(router: Rig) -> list[str]:
    """All rules, chains and policies of all tables but for ours, which are told by their names, in their order."""
    found, table = [], ""
    for line in router.dump():
        table = line if line.startswith("*") else table
        if line[0] in ":-" and not line.endswith(" ACCEPT") and not OURS.search(line):
            found.append(f"{table} {line}")
    return found + router.shell("nft -s list ruleset inet\n").splitlines()


def _having(backend: str, place: Path) -> tuple[str, ...]:
    """What to put before a program, to which `iptables` shall be this one, as update-alternatives(1) would have it."""
    links = place / "alternatives"
    shutil.copytree("/etc/alternatives", links, symlinks=True)
    for tool in ("iptables", "ip6tables"):
        for what in ("", "-save", "-restore"):
            link = links / f"{tool}{what}"
            link.unlink()
            link.symlink_to(f"/usr/sbin/{tool}-{backend}{what}")
    return ("unshare", "--mount", "sh", "-ec", 'mount --bind "$0" /etc/alternatives; exec "$@"', str(links))


class Ufw:
    """ufw with files of its own, letting the first LAN through."""

    def __init__(self, router: Rig, place: Path, backend: str) -> None:
        self._router = router
        place.mkdir()
        for name in ("etc", "lib", "usr/share/ufw"):
            shutil.copytree(UNPACKED / name, place / name, symlinks=True)
        # As its package's postinst does.
        samples = place / "usr/share/ufw"
        for sample in (*samples.glob("iptables/*.rules"), *samples.glob("*.init"), samples / "ufw.conf"):
            shutil.copy(sample, place / "etc/ufw")
        program = (*_having(backend, place), *_PYTHON, str(UNPACKED / "usr/sbin/ufw"))
        self._argv = (*program, f"--rootdir={place}", f"--datadir={place}")
        self("route", "allow", "in", "on", "eth0")

    def __call__(self, *words: str) -> str:
        return self._router.lab.run(ROUTER, *self._argv, *words)


class Firewalld:
    """firewalld with a bus and files of its own: the LANs in zone internal, the ISPs in zone external."""

    def __init__(self, router: Rig, place: Path, frontend: str, backend: str) -> None:
        self._router, self._system = router, place / "firewalld"
        self._having = _having(backend, place)
        shutil.copytree(UNPACKED / "etc/firewalld", self._system)
        file = self._system / "firewalld.conf"
        file.write_text(file.read_text().replace("FirewallBackend=nftables", f"FirewallBackend={frontend}"))
        bus = place / "bus"
        bus.with_suffix(".conf").write_text(_BUS.format(socket=bus))
        self._bus = ("env", f"DBUS_SYSTEM_BUS_ADDRESS=unix:path={bus}")
        router.lab.start(ROUTER, ["dbus-daemon", f"--config-file={bus}.conf", "--nofork"])
        wait_until(bus.exists, what="the bus")
        self._running: command.Running | None = None
        for name, text in _FIREWALLD.items():
            (self._system / f"{name}.xml").write_text(text)

    def start(self) -> None:
        """Have it load all its rules."""
        argv = [
            *self._having,
            *self._bus,
            *_PYTHON,
            str(UNPACKED / "usr/sbin/firewalld"),
            "--nofork",
            "--nopid",
            "--log-target=console",
        ]
        self._running = self._router.lab.start(
            ROUTER, [*argv, f"--system-config={self._system}", f"--default-config={UNPACKED}/usr/lib/firewalld"], print
        )
        wait_until(lambda: self._router.anyhow(*self._cmd("--state")).status == 0, what="firewalld")

    def stop(self) -> None:
        """End it; it takes its rules with it."""
        assert self._running
        self._running.stop()

    def reload(self) -> None:
        """Have it make its rules anew."""
        self._router.lab.run(ROUTER, *self._cmd("--reload"))

    def _cmd(self, *words: str) -> tuple[str, ...]:
        return (*self._bus, *_PYTHON, str(UNPACKED / "usr/bin/firewall-cmd"), *words)


# By a reset in IPv6, as an ICMPv6 error is there while connect() is still at work, overlooks it and tries again in 1 s.
_FAIL2BAN = {
    "action.d/iptables": "[Init?family=inet6]\nblocktype = REJECT --reject-with tcp-reset -p tcp\n",
    "fail2ban": "[DEFAULT]\nlogtarget = STDOUT\ndbfile = {place}/bans.sqlite3\n",
    "jail": """[sshd]
port = {port}
logpath = {place}/auth.log
backend = polling
maxretry = 3
action = iptables-multiport[name=sshd, port={port}]
         iptables-multiport[name=behind, port={port}, chain=FORWARD]
""",
}


class Fail2ban:
    """fail2ban with files of its own: the jail that Debian switches on, of a port here and behind the router."""

    def __init__(self, router: Rig, place: Path, backend: str, port: int) -> None:
        self._router, self._log = router, place / "auth.log"
        system = place / "fail2ban"
        shutil.copytree(UNPACKED / "etc/fail2ban", system)
        for name, text in _FAIL2BAN.items():
            (system / f"{name}.local").write_text(text.format(port=port, place=place))
        self._log.touch()
        files = (f"--conf={system}", f"--socket={place}/fail2ban.sock", f"--pidfile={place}/fail2ban.pid")
        server, client = (str(UNPACKED / f"usr/bin/fail2ban-{part}") for part in ("server", "client"))
        self._server = (*_having(backend, place), *_PYTHON, server, *files, "-f", "start")
        self._client = (*_PYTHON, client, *files)
        self._running: command.Running | None = None

    def start(self) -> None:
        """Have it ban again whom it has banned before."""
        self._running = self._router.lab.start(ROUTER, self._server, print)
        wait_until(lambda: self._router.anyhow(*self._client, "ping").status == 0, what="fail2ban")

    def stop(self) -> None:
        """End it; it takes its rules with it."""
        assert self._running
        self._running.stop()

    def __call__(self, *words: str) -> None:
        """What an administrator says to it."""
        self._router.lab.run(ROUTER, *self._client, *words)

    def read(self, *addresses: str) -> None:
        """Let it find in its log that these have tried too often."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        said = "Failed password for root from {} port 22 ssh2"
        failed = [f"{now} router sshd[{pid}]: {said.format(each)}\n" for pid, each in enumerate(addresses, 1)]
        with self._log.open("a") as log:
            log.writelines(failed * 3)


CONTAINER = "container"  # its namespace
PUBLISHED = 8080  # the port of the router that Docker hands on to the container's port 80
# What `docker run -p 8080:80` leaves behind on Debian 12, as iptables-save prints it; and in DOCKER-USER, as Docker's
# manual has it, what an administrator lets through where Docker has set the policy of FORWARD to DROP.
_DOCKER = """*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-USER -i eth0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""
# What it does when it is started again: it puts its own first once more.
_DOCKER_AGAIN = """
t=iptables-{backend}
$t -t nat -D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
$t -t nat -I POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
for chain in DOCKER-ISOLATION-STAGE-1 DOCKER-USER; do
    $t -D FORWARD -j $chain
    $t -I FORWARD -j $chain
done
"""


class Docker:
    """A container that serves behind docker0, and Docker's tables."""

    def __init__(self, router: Rig, backend: str) -> None:
        self._router, self._backend = router, backend
        router.shell(
            "ip link add docker0 type bridge\nip link set docker0 up\nip addr add 172.17.0.1/16 dev docker0\n"
            f"ip link add veth0 type veth peer name eth0 netns {CONTAINER}\nip link set veth0 master docker0 up\n"
        )
        router.lab.shell(
            CONTAINER,
            "ip link set lo up\nip link set eth0 up\nip addr add 172.17.0.2/16 dev eth0\n"
            "ip route add default via 172.17.0.1\n",
        )
        router.listen(CONTAINER, 80)

    def start(self) -> None:
        """Have its tables made."""
        self._router.shell(f"iptables-{self._backend}-restore --noflush <<'END'\n{_DOCKER}END\n")

    def again(self) -> None:
        """Have it started again."""
        self._router.shell(_DOCKER_AGAIN.format(backend=self._backend))


@contextmanager
def docker(router: Rig, backend: str) -> Iterator[Docker]:
    """Docker with one container, whose tables are not made yet."""
    command.run("ip", "netns", "add", CONTAINER)
    try:
        yield Docker(router, backend)
    finally:
        command.run("ip", "netns", "delete", CONTAINER)
