"""A TCP balancer before several nodes, as plain as they come: the next one that accepts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.fakes.streams import stream_server

PIECE_BYTES = 65_536


class Balancer:
    """Gives each connection to the next port in turn, and to another one when that is closed."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._next = 0
        self.url = ""
        self.given: dict[int, int] = dict.fromkeys(ports, 0)
        """How many connections each port got."""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = self._next
        self._next = (first + 1) % len(self._ports)
        for port in self._ports[first:] + self._ports[:first]:
            try:
                from_node, to_node = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.given[port] += 1
            try:
                ways = [
                    asyncio.ensure_future(_copy(reader, to_node)),
                    asyncio.ensure_future(_copy(from_node, writer)),
                ]
                # What the node says last must arrive; what a client says to a node that is gone
                # has nowhere to go.
                await asyncio.wait([ways[1]])
                ways[0].cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                to_node.transport.abort()
            return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(PIECE_BYTES):
            writer.write(content)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@asynccontextmanager
async def running_balancer(ports: Sequence[int]) -> AsyncIterator[Balancer]:
    balancer = Balancer(ports)
    async with stream_server(balancer.take) as port:
        balancer.url = f"http://127.0.0.1:{port}"
        yield balancer
