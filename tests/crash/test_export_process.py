"""The process that reads exports, seen from outside: killed, and left alone by a server's end."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.support_live import LiveServer, live_server_in
from tests.support_load import Account, fill_repo, sign_up
from tests.support_postgres import is_chosen

pytestmark = pytest.mark.skipif(is_chosen(), reason="on PostgreSQL exports are read by threads")

RECORDS = 16_000
"""About 5 MB: more than the buffers between the processes hold."""


def children(server: LiveServer) -> list[int]:
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while is_running(pid):
            await asyncio.sleep(0.02)


async def export_stopped(
    server: LiveServer, account: Account, pid: int, end: int, sent: asyncio.Event | None = None
) -> bytes:
    """Fetch a repo, stop the process at the first byte, then send it or the server a signal.

    Return all bytes of the body; an answer that was cut raises.
    """
    url = f"{server.url}/xrpc/com.atproto.sync.getRepo?did={account.did}"
    assert server.process is not None
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        first = await answer.content.readany()
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.05)
        if end == signal.SIGTERM:
            server.process.send_signal(end)
        else:
            os.kill(pid, end)
        if sent is not None:
            sent.set()
        return first + await answer.content.read()


async def test_ends_of_the_process_and_of_the_server(tmp_path):
    """Killed in the middle, the answer is cut; a server that ends, however, leaves nothing."""
    async with live_server_in(tmp_path) as server:
        (account,) = await sign_up(server.url, 1, "large")
        await fill_repo(server.url, account, RECORDS)
        whole = await server.export(account.did)
        cuts = 0
        for _ in range(10):  # On a busy machine the export may be over before it is stopped.
            (pid,) = children(server)
            try:
                assert await export_stopped(server, account, pid, signal.SIGKILL) == whole
            except aiohttp.ClientPayloadError:
                cuts += 1
            await gone(pid)
            assert await server.export(account.did) == whole
            if cuts:
                break
        assert cuts

        (pid,) = children(server)
        await server.kill()
        await gone(pid)
        await server.start()
        assert await server.export(account.did) == whole

        (pid,) = children(server)
        sent = asyncio.Event()
        stopping = asyncio.create_task(export_stopped(server, account, pid, signal.SIGTERM, sent))
        await asyncio.wait_for(sent.wait(), 60)
        await asyncio.sleep(1)
        with contextlib.suppress(ProcessLookupError):  # If the export was over, it has ended.
            os.kill(pid, signal.SIGCONT)
        await asyncio.wait([stopping])
        assert stopping.exception() is not None or stopping.result() == whole
        assert await server.stop() == 0
        assert not is_running(pid)
