"""A twin of a configured router in network namespaces: built, driven, broken and repaired on the real kernel."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from lsmpy import LsmpyError, command, labserver, sandbox, twin
from lsmpy.model import FAMILIES, Address, Family, Router
from lsmpy.twin import INTERNET, ROUTER, isp_node, lan_node

__all__ = ["INTERNET", "PORT", "ROUTER", "Lab", "LabError", "isp_node", "lan_node", "wait_until"]

PORT = 7777  # of the internet's server, TCP and UDP
_POLL_S, _REST = 0.01, 4


class LabError(LsmpyError):
    """The laboratory cannot be built, or what was waited for did not come."""


class Lab:
    """A router and its surroundings, for as long as the `with` block lasts; only inside a sandbox.

    Its namespaces are `router`, `internet`, `isp-NAME` for each ISP and `lan-NAME` for each LAN's host. The router has
    the configured interfaces and addresses, forwards, and has rp_filter as systemd sets it; the rest is lsmpy's to do.

    Attributes:
        server: the address of the internet's server, for each family that some ISP carries.
    """

    def __init__(self, router: Router, main_default: str | None = None) -> None:
        """Plan the laboratory.

        Args:
            router: the configuration.
            main_default: the ISP by which the router's main table has its default routes; None for none.
        """
        self._twin = twin.Twin(router)
        self._main_default = main_default
        self._daemons: list[command.Running] = []
        self.router = router
        self.server: dict[Family, Address] = self._twin.server

    def __enter__(self) -> Self:
        """Build it.

        Raises:
            LabError: this is no sandbox.
            CommandError: the kernel refused something.
        """
        if not sandbox.inside():
            raise LabError("a laboratory needs a sandbox around it; run it by: python -m lsmpy.lab COMMAND ARGUMENT…")
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it down."""
        self.close()

    def close(self) -> None:
        """End every program that was started here, then remove the namespaces."""
        while self._daemons:
            daemon = self._daemons.pop()
            if daemon.alive:
                daemon.stop()
        made = [node for node in self._twin.nodes() if (sandbox.NETNS / node).exists()]
        command.run("ip", "-batch", "-", stdin="".join(f"netns delete {node}\n" for node in made))

    def _build(self) -> None:
        names = "".join(f"netns add {node}\n" for node in self._twin.nodes())
        command.run("ip", "-batch", "-", stdin=names)
        command.run("ip", "-batch", "-", stdin=self._twin.links())
        scripts = {ROUTER: self._twin.router_script(self._main_default), INTERNET: self._twin.internet_script()}
        scripts |= {isp_node(isp.name): self._twin.isp_script(isp) for isp in self.router.isps}
        scripts |= {lan_node(lan.name): self._twin.lan_script(lan) for lan in self.router.lans}
        running = [command.start(_inside(node, ["sh", "-s"]), stdin=text) for node, text in scripts.items()]
        for program in running:
            program.wait()

    # -- programs ----------------------------------------------------------------------------------------------------

    def run(self, node: str, *argv: str, stdin: str = "", timeout_s: float = command.TIMEOUT_S) -> str:
        """Run a program in a namespace and return what it printed.

        Raises:
            CommandError: it failed or took longer than `timeout_s`.
        """
        return command.start(_inside(node, argv), stdin, timeout_s).wait()

    def shell(self, node: str, script: str) -> str:
        """Run a shell script in a namespace, up to its first error, and return what it printed.

        Raises:
            CommandError: a line of it failed.
        """
        return self.run(node, "sh", "-e", "-s", stdin=script)

    def start(self, node: str, argv: Sequence[str], on_line: Callable[[str], object] | None = None) -> command.Running:
        """Start a daemon in a namespace; it ends with the laboratory at the latest.

        Args:
            node: the namespace.
            argv: program and arguments.
            on_line: called from another thread with each line it prints, with its newline.
        """
        running = command.start(_inside(node, argv), timeout_s=None, on_line=on_line)
        self._daemons.append(running)
        return running

    def start_server(self) -> None:
        """Start the internet's server, which tells each flow by which ISP and from which address it came.

        Whatever the configuration checks by TCP or DNS is served too, where it lives.

        Raises:
            LabError: it does not get ready.
        """
        links = [f"{self._twin.link(isp)}={isp.name}" for isp in self.router.isps]
        ports = [
            f"{kind} {address} {PORT}" for address in self.server.values() for kind in (labserver.TCP, labserver.UDP)
        ]
        self._serve(INTERNET, [*ports, *self._twin.outer_calls()], links)
        for isp in self.router.isps:
            if ports := self._twin.inner_calls(isp):
                self._serve(isp_node(isp.name), ports, [f"{ROUTER}={isp.name}"])

    def _serve(self, node: str, ports: Sequence[str], links: Sequence[str]) -> None:
        said: list[str] = []
        words = [*(f"--port={port}" for port in ports), *(f"--link={link}" for link in links)]
        server = self.start(node, [sys.executable, "-m", "lsmpy.labserver", *words], said.append)
        wait_until(lambda: said or not server.alive, what=f"the server in {node} to be ready")
        if said != [f"{labserver.READY}\n"]:
            raise LabError(f"the server in {node} did not start: {''.join(said)}")

    # -- places ------------------------------------------------------------------------------------------------------

    def host(self, lan: str, family: Family) -> Address | None:
        """The address of the host in the LAN called `lan`; None when the LAN lacks the family."""
        return next(self._twin.host(each, family) for each in self.router.lans if each.name == lan)

    def link(self, isp: str) -> str:
        """The internet's interface towards the ISP called `isp`."""
        return self._twin.link(self._twin.isp(isp))

    # -- faults ------------------------------------------------------------------------------------------------------

    def kill_upstream(self, isp: str) -> None:
        """Let the ISP forward nothing, silently; its gateway still answers."""
        self._upstream(isp, "add")

    def revive_upstream(self, isp: str) -> None:
        """Let it forward again."""
        self._upstream(isp, "delete")

    def _upstream(self, isp: str, verb: str) -> None:
        lines = [f"ip -{f} rule {verb} pref 10 iif {end} blackhole\n" for f in FAMILIES for end in (ROUTER, INTERNET)]
        self.shell(isp_node(isp), "".join(lines))

    def pull_cable(self, isp: str) -> None:
        """Take the carrier from the router's interface to the ISP."""
        self.run(isp_node(isp), "ip", "link", "set", "dev", ROUTER, "down")

    def plug_cable(self, isp: str) -> None:
        """Give it back."""
        self.shell(isp_node(isp), twin.batch(self._twin.isp_port(self._twin.isp(isp))))

    def delete_interface(self, isp: str) -> None:
        """Remove the router's interface to the ISP, as when a driver fails or a tunnel ends."""
        self.run(ROUTER, "ip", "link", "delete", "dev", self._twin.isp(isp).interface)

    def recreate_interface(self, isp: str) -> None:
        """Make it anew, with its addresses and the ISP's."""
        item = self._twin.isp(isp)
        command.run("ip", "-batch", "-", stdin=self._twin.cable(item) + "\n")
        self.shell(ROUTER, twin.batch(self._twin.router_port(item)))
        self.plug_cable(isp)

    # -- what the kernel saw -----------------------------------------------------------------------------------------

    def foreign_packets(self, isp: str) -> int:
        """Packets that came to the ISP from the router, ever, with a source address that is not of this ISP.

        Counted by the kernel in the ISP's namespace, and dropped there. Where a family has no NAT, the LANs' own
        addresses are legal; link-local and multicast packets are nobody's flows.
        """
        saved = self.shell(isp_node(isp), "iptables-save -c -t raw\nip6tables-save -c -t raw\n")
        return twin.foreign_count(saved)


def wait_until(predicate: Callable[[], object], *, what: str, deadline_s: float = 10.0) -> float:
    """Wait until `predicate` holds and return how many seconds that took.

    Raises:
        LabError: it did not hold within `deadline_s` seconds; the message says `what` was waited for.
    """
    start = looked = time.monotonic()
    while not predicate():
        now = time.monotonic()
        if now - start > deadline_s:
            raise LabError(f"waited {deadline_s:g} s in vain for {what}")
        time.sleep(max(_POLL_S, _REST * (now - looked)))  # to look may be dear, and what is waited for needs the time
        looked = time.monotonic()
    return time.monotonic() - start


def _inside(node: str, argv: Sequence[str]) -> list[str]:
    # Not `ip netns exec`: that mounts /sys anew, which a user namespace may not.
    return ["nsenter", f"--net={sandbox.NETNS / node}", *argv]


def main() -> int:
    """`python -m lsmpy.lab COMMAND ARGUMENT…`: run a command in a sandbox."""
    if len(sys.argv) < 2:
        print("usage: python -m lsmpy.lab COMMAND ARGUMENT…", file=sys.stderr)
        return 2
    try:
        return sandbox.enter(sys.argv[1:])
    except LsmpyError as error:
        print(f"lsmpy: error: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
