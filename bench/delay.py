"""A network delay: passes TCP connections on to a server, everything that the client sends later than it came.

python bench/delay.py PORT SERVER SERVER_PORT SECONDS       listens on 127.0.0.1 until it is ended
"""

from __future__ import annotations

import asyncio
import sys


class ToClient(asyncio.Protocol):
    """The server's side of a connection."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._client.close()


class FromClient(asyncio.Protocol):
    """The client's side: what it sends is passed on `delay` seconds later, in the same order."""

    def __init__(self, server: tuple[str, int], delay: float) -> None:
        self._server, self._delay = server, delay
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connected = self._loop.create_task(
            self._loop.create_connection(lambda: ToClient(transport), *self._server)
        )

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(self._delay, self._loop.create_task, self._pass_on(data))

    async def _pass_on(self, data: bytes) -> None:
        upstream, _ = await self._connected
        upstream.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._loop.create_task(self._close())

    async def _close(self) -> None:
        upstream, _ = await self._connected
        upstream.close()


async def main(port: int, server: str, server_port: int, seconds: float) -> None:
    listening = await asyncio.get_running_loop().create_server(
        lambda: FromClient((server, server_port), seconds), "127.0.0.1", port, backlog=4096
    )
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
