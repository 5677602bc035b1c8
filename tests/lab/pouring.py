"""A server by UDP that is never silent: `pouring.py ADDRESS PORT INTERFACE=ISP…`.

Whoever speaks to it is told `ISP SOURCE` two hundred times a second, until 0.3 s after having spoken last, by the
interface by which that came. Prints `ready`.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

_PAUSE_S, _PATIENCE_S = 0.005, 0.3


def main() -> None:
    """See the file's beginning."""
    address, port, *links = sys.argv[1:]
    selector = selectors.DefaultSelector()
    for link in links:
        interface, _, isp = link.partition("=")
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        sock.bind((address, int(port)))
        selector.register(sock, selectors.EVENT_READ, isp)
    heard: dict[tuple[socket.socket, str, int], tuple[str, float]] = {}
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(_PAUSE_S):
            assert isinstance(key.fileobj, socket.socket)
            try:
                peer = key.fileobj.recvfrom(100)[1]
            except OSError:
                continue  # whom we told has gone
            heard[key.fileobj, peer[0], peer[1]] = key.data, time.monotonic()
        for (sock, host, number), (isp, since) in heard.items():
            if time.monotonic() < since + _PATIENCE_S:
                try:
                    sock.sendto(f"{isp} {host}\n".encode(), (host, number))
                except OSError:
                    continue


if __name__ == "__main__":
    main()
