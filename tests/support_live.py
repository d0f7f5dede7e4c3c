"""A served host for tests from outside: the process, its PLC directory, and its checks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.fakes.plc import running_plc
from tests.independent import check_export
from tests.support_process import ServerProcess


class LiveServer(ServerProcess):
    """A server process with what a stranger knows of it: its URL and the PLC directory's."""

    plc_url: str

    async def signing_key(self, did: str) -> str:
        """Return the did:key that the PLC directory has for `did`."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.plc_url}/{did}/data") as answer,
        ):
            key: str = (await answer.json())["verificationMethods"]["atproto"]
            return key

    async def export(self, did: str) -> bytes:
        """Return the CAR export of `did`."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.url}/xrpc/com.atproto.sync.getRepo", params={"did": did}) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def check_repo(self, did: str, paths: set[str]) -> dict[str, bytes]:
        """Verify the export of `did` independently; it must hold exactly `paths`."""
        records = check_export(await self.export(did), did=did, did_key=await self.signing_key(did))
        assert set(records) == paths
        return records


@asynccontextmanager
async def live_server_in(folder: Path, **settings: str) -> AsyncIterator[LiveServer]:
    """Run a PLC directory and a server on loopback until the block ends; the server is stopped."""
    async with running_plc() as plc:
        server = LiveServer(folder, plc.url, **settings)
        server.plc_url = plc.url
        await server.start()
        try:
            yield server
        finally:
            if server.process is not None:
                assert await server.stop() == 0, server.log_tail()
