"""What one long export costs everybody else: writes of another account while a repo is exported.

The same data folder is served twice: exports on a reader thread, then in a process of their own. In
each, single createRecords of another account are timed alone and while one client after the other
fetches a large repo as fast as it can. The fetching client is a process of its own, so that it
takes nothing from the one that measures.

`python -m bench.export [records]`
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.http_load import cpu_seconds, create, drive
from tests.fakes.plc import running_plc
from tests.support_live import LiveServer
from tests.support_load import Account, fill_repo, sign_up

FETCH = """
import socket, sys, time
port, path, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
buffer, total, firsts, began = bytearray(1 << 20), 0, [], time.perf_counter()
for _ in range(times):
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n"
        connection.sendall(head.encode())
        size = connection.recv_into(buffer)
        firsts.append(time.perf_counter() - start)
        while size:
            total += size
            size = connection.recv_into(buffer)
print(total, time.perf_counter() - began, sorted(firsts)[len(firsts) // 2])
"""


def fetch(server: LiveServer, account: Account, times: int) -> "subprocess.Popen[str]":
    """Start a process that fetches a repo several times; it prints bytes, time, first byte."""
    path = f"/xrpc/com.atproto.sync.getRepo?did={account.did}"
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(server.port), path, str(times)],
        stdout=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def memory_line(pid: int) -> str:
    """Return resident and private memory of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    own = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return f"{kilobytes['Rss'] / 1000:.0f} MB resident, {own / 1000:.0f} MB its own"


async def measure(server: LiveServer, large: Account, other: Account, seconds: float) -> None:
    """Print the lines of one way to export."""
    assert server.process is not None

    def make(number: int) -> bytes:
        return create(other, number)

    started = await asyncio.to_thread(fetch(server, large, 1).communicate)
    print(f"  first export after the start: first byte {float(started[0].split()[2]) * 1e3:.1f} ms")
    idle = await drive(server, "  createRecord alone", make, connections=1, seconds=seconds)
    print(idle)
    pids = [server.process.pid, *children(server.process.pid)]
    before = [cpu_seconds(pid) for pid in pids]
    out, _ = await asyncio.to_thread(fetch(server, large, 5).communicate)
    size, took, first = map(float, out.split())
    used = sum(cpu_seconds(pid) for pid in pids) - sum(before)
    print(
        f"  getRepo, {size / 5e6:.1f} MB{'':<18}{size / took / 1e6:>16.0f} MB/s   first byte"
        f" {first * 1e3:.1f} ms, {used / size * 1e9:.1f} ms CPU per MB in all"
    )
    fetching = fetch(server, large, 1000)
    try:
        busy = await drive(
            server, "  createRecord during exports", make, connections=1, seconds=seconds
        )
    finally:
        fetching.kill()
        fetching.communicate()
    print(busy)
    print(f"  p50 {busy.p50_ms / idle.p50_ms:.2f} times, p99 {busy.p99_ms / idle.p99_ms:.2f} times")
    for pid in pids[1:]:
        print(f"  the process: {memory_line(pid)}, nice {os.getpriority(os.PRIO_PROCESS, pid)}")


async def run(records: int, seconds: float = 4.0) -> None:
    """Fill one repo, then measure both ways in turn, twice."""
    with tempfile.TemporaryDirectory() as folder:
        async with running_plc() as plc:
            server = LiveServer(Path(folder), plc.url)
            server.plc_url = plc.url
            await server.start()
            large, other = await sign_up(server.url, 2, "person")
            began = time.perf_counter()
            await fill_repo(server.url, large, records)
            print(f"filled {records:,} records in {time.perf_counter() - began:.0f} s")
            await server.stop()
            for _ in range(2):
                for name, limit in (("on a thread", 10**9), ("in a process", 1)):
                    print(name)
                    server.environment["PDS_EXPORT_PROCESS_RECORDS"] = str(limit)
                    await server.start()
                    try:
                        await measure(server, large, other, seconds)
                    finally:
                        await server.stop()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 40_000))
