"""The internet's server in a laboratory: tells each flow by which ISP and from which source address it came.

A flow sends a line, by TCP or UDP, and reads one back: `ISP SOURCE`. To DNS queries it answers that there is nothing.
"""

from __future__ import annotations

import argparse
import ipaddress
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

ONCE, MORE = b"once\n", b"more\n"  # after answering the first, the server closes
READY = "ready"
TCP, UDP, DNS = "tcp", "udp", "dns"  # kinds of port
_BACKLOG = 4096
_IS_ANSWER = 0x80  # in the third byte (RFC 1035, 4.1.1)
_BUFFER = 1 << 21  # for bursts; the kernel gives what net.core.rmem_max allows


def serve(ports: Sequence[str], links: Sequence[str]) -> None:
    """Answer on every port (`KIND ADDRESS NUMBER`) and link (`INTERFACE=ISP`) until the process is ended.

    Each link has sockets of its own, bound to the interface: that is how it is known by which ISP a flow came, and
    what makes the answer go back the same way.
    """
    loop = selectors.EpollSelector()

    def register(sock: socket.socket, react: Callable[[socket.socket, str], None], isp: str) -> None:
        sock.setblocking(False)
        loop.register(sock, selectors.EVENT_READ, (react, isp))

    def accept(listener: socket.socket, isp: str) -> None:
        with suppress(BlockingIOError):
            while True:
                register(listener.accept()[0], converse, isp)

    def converse(sock: socket.socket, isp: str) -> None:
        text = b""
        with suppress(OSError):
            text = sock.recv(4096)
            answer = f"{isp} {sock.getpeername()[0]}\n".encode() * text.count(b"\n")
            sock.sendall(answer)
        if not text or ONCE in text:
            loop.unregister(sock)
            sock.close()

    def reflect(sock: socket.socket, isp: str) -> None:
        with suppress(OSError):  # an answer that cannot be sent is a lost datagram
            while True:
                peer = sock.recvfrom(4096)[1]
                sock.sendto(f"{isp} {peer[0]}\n".encode(), peer)

    def resolve(sock: socket.socket, _isp: str) -> None:
        with suppress(OSError, IndexError):
            while True:
                query, peer = sock.recvfrom(4096)
                sock.sendto(query[:2] + bytes([query[2] | _IS_ANSWER]) + query[3:], peer)

    for port in ports:
        kind, address, number = port.split()
        family = socket.AF_INET if ipaddress.ip_address(address).version == 4 else socket.AF_INET6
        react = {TCP: accept, UDP: reflect, DNS: resolve}[kind]
        for link in links:
            interface, _, isp = link.partition("=")
            sock = socket.socket(family, socket.SOCK_STREAM if kind == TCP else socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            sock.bind((address, int(number)))
            if kind == TCP:
                sock.listen(_BACKLOG)
            register(sock, react, isp)
    print(READY, flush=True)
    while True:
        for key, _events in loop.select():
            react, isp = key.data
            react(key.fileobj, isp)


def main() -> int:
    """`python -m lsmpy.labserver --port "KIND ADDRESS NUMBER"… --link INTERFACE=ISP…`; runs until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m lsmpy.labserver")
    parser.add_argument("--port", action="append", required=True, metavar="KIND ADDRESS NUMBER")
    parser.add_argument("--link", action="append", required=True, metavar="INTERFACE=ISP")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    serve(args.port, args.link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
