"""A name server that gives every name below `test` one address: hosts by the hundred thousand, without a list of them.

python3 - ADDRESS < bench/names.py      on the web host, as root
"""

from __future__ import annotations

import socket
import struct
import sys

A, IN = 1, 1
ANSWER, NO_SUCH_NAME = 0x8580, 0x8583
"""Flags: an authoritative answer; the same, with the code of a name that does not exist."""


def answer(query: bytes, address: bytes) -> bytes:
    """The answer to a query with one question (RFC 1035, section 4.1)."""
    end = query.index(b"\0", 12)
    question, (kind,) = query[12 : end + 5], struct.unpack("!H", query[end + 1 : end + 3])
    flags = ANSWER if query[12 : end + 1].lower().endswith(b"\x04test\0") else NO_SUCH_NAME
    found = kind == A and flags == ANSWER
    record = struct.pack("!HHHIH", 0xC00C, A, IN, 3600, 4) + address if found else b""
    return query[:2] + struct.pack("!HHHHH", flags, 1, found, 0, 0) + question + record


def main() -> None:
    address = socket.inet_aton(sys.argv[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        server.bind(("", 53))
        while True:
            query, client = server.recvfrom(512)
            try:
                reply = answer(query, address)
            except (ValueError, struct.error):
                continue  # no query
            server.sendto(reply, client)


if __name__ == "__main__":
    main()
