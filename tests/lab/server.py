"""The internet's servers for checks by the kernel's own sockets: TCP at port 443 and DNS at port 53, of both families.

`server.py [silent] [ADDRESS…]` prints `ready`; of other addresses if they are given. With `silent` both hear everything
and say nothing.
"""

from __future__ import annotations

import selectors
import socket
import sys

ANSWER = 0x80


def main() -> None:
    """See the file's beginning."""
    silent = "silent" in sys.argv
    addresses = [each for each in sys.argv[1:] if each != "silent"]
    selector = selectors.DefaultSelector()
    for address in addresses or ("203.0.113.1", "2001:db8:ffff::1"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dns = socket.socket(family, socket.SOCK_DGRAM)
        tcp.bind((address, 443))
        dns.bind((address, 53))
        if not silent:
            tcp.listen()
            selector.register(tcp, selectors.EVENT_READ)
        selector.register(dns, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            sock = key.fileobj
            if sock.type == socket.SOCK_STREAM:
                sock.accept()[0].close()
                continue
            query, client = sock.recvfrom(4096)
            if not silent:
                sock.sendto(query[:2] + bytes([query[2] | ANSWER]) + query[3:], client)


if __name__ == "__main__":
    main()
