"""A large account moves in while it is written to: how long it takes, and what is at stake.

The pause is what `paused_ms` of a move says: from the beginning of the last look at the source,
behind which a write there is not copied, until the account takes writes at its new host.
"""

import asyncio
import os
import statistics
import time
from pathlib import Path

import pytest

from pds.services.migration_work import Given
from tests.scenarios.moving import (
    make_traveller,
    plc_code,
    request_for,
    two_hosts,
)
from tests.scenarios.test_migrate_switch import Writer, fill, find_missing

RECORDS = int(os.environ.get("PDS_SOAK_IMPORT_RECORDS", "128000"))
WRITES_PER_S = 20
WAITING_WRITES = 200
"""Taken by the old host while the move waits for the code."""
MAX_PAUSE_MS = 2000


@pytest.mark.timeout(1800)
async def test_a_large_account_that_is_written_to_is_nowhere_for_a_moment_only(
    tmp_path: Path,
) -> None:
    """Both hosts run in this process, and share its one interpreter with the writer."""
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=3)
        await fill(alice, RECORDS)
        began = time.monotonic()
        writer = Writer(alice, pause_s=1 / WRITES_PER_S)
        writing = asyncio.create_task(writer.run())
        await hosts.migration.start_in(request_for(alice))
        view = await hosts.migration.settle(alice.did)
        copied_s = time.monotonic() - began
        assert view["step"] == "approve", view
        assert view["progress"]["records"] >= RECORDS
        await hosts.migration.go_on(alice.did, Given(requests_token=True))
        code = await plc_code(hosts.old)
        copied = len(writer.taken)
        async with asyncio.timeout(600):
            while len(writer.taken) < copied + WAITING_WRITES:
                await asyncio.sleep(0.05)
        waited = len(writer.taken)
        began = time.monotonic()
        await hosts.migration.go_on(alice.did, Given(plc_token=code))
        view = await hosts.migration.settle(alice.did)
        switched_s = time.monotonic() - began
        await writing
        missing = await find_missing(hosts, alice.did, writer.taken)
        print(
            f"\n{RECORDS} records, {view['progress']['repoBytes']:,} bytes read:"
            f" copied in {copied_s:.1f} s, caught up and switched in {switched_s:.1f} s;"
            f" pause {view['pausedMs']} ms; {len(writer.taken)} writes taken meanwhile, of them"
            f" {waited - copied} after the copy, {len(writer.taken) - waited} in the switch,"
            f" {view['progress']['carriedOver']} carried over, {len(missing)} missing;"
            f" median write {statistics.median(writer.latencies_s) * 1e3:.0f} ms"
        )
        assert (view["status"], view["warnings"]) == ("done", []), view
        assert writer.refusal == "AccountDeactivated"
        assert missing == set()
        assert view["pausedMs"] <= MAX_PAUSE_MS
