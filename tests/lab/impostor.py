"""Somebody at the far end of a link who answers echo requests that are not his to answer, in one of several wrong ways.

`impostor.py INTERFACE WAY` prints `ready`, and then for every echo request of IPv4 that comes in by INTERFACE

  true      the right answer, so that a test can see that this program's answers do arrive
  other     the right answer, but from another address
  nonsense  answers to the right one with a wrong nonce, tag, number or length
  replay    the very first right answer, again and again, as fast as it can
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator

ETHER, HEAD = 14, 14 + 20
ECHO_REQUEST, ECHO_REPLY = 8, 0
OTHER = socket.inet_aton("203.0.113.99")


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def reply(request: bytes, source: bytes, body: bytes) -> bytes:
    """The answer to a request, from `source`, with `body` after type, code and checksum."""
    message = bytes([ECHO_REPLY, 0, 0, 0]) + body
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    head = bytearray(request[ETHER:HEAD])
    head[2:4] = struct.pack("!H", len(head) + len(message))
    head[10:12] = bytes(2)
    head[12:16], head[16:20] = source, request[ETHER + 12 : ETHER + 16]
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return request[6:12] + request[:6] + request[12:ETHER] + bytes(head) + message


def answers(request: bytes, way: str) -> Iterator[bytes]:
    """What comes back."""
    target, body = request[ETHER + 16 : ETHER + 20], request[HEAD + 4 :]
    if way == "other":
        yield reply(request, OTHER, body)
    elif way == "nonsense":
        for at in (4, 8, 12, 20):  # in nonce, target, counter and tag
            yield reply(request, target, body[:at] + os.urandom(4) + body[at + 4 :])
        yield reply(request, target, body[:-2])
        yield reply(request, target, bytes([body[0] ^ 1]) + body[1:])
    else:
        yield reply(request, target, body)


def main() -> None:
    """See the file's beginning."""
    interface, way = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as link:
        link.bind((interface, 0x0800))
        print("ready", flush=True)
        first = b""
        while True:
            if first:
                link.send(first)
                continue
            frame, address = link.recvfrom(2048)
            ours = address[2] == socket.PACKET_OUTGOING
            if not ours and frame[ETHER + 9] == socket.IPPROTO_ICMP and frame[HEAD] == ECHO_REQUEST:
                for back in answers(frame, way):
                    link.send(back)
                    first = back if way == "replay" else b""


if __name__ == "__main__":
    main()
