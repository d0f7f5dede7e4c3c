"""A large account moves in while it is in use: how long it takes, and how long it is nowhere."""

import os
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

RECORDS = int(os.environ.get("PDS_SOAK_IMPORT_RECORDS", "128000"))
BATCH = 200
MAX_PAUSE_MS = 2000
POST = "app.bsky.feed.post"


@pytest.mark.timeout(1800)
async def test_a_large_account_is_nowhere_for_a_moment_only(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts:
        alice = await make_traveller(hosts, blobs=3)
        for first in range(0, RECORDS, BATCH):
            writes = [
                {
                    "$type": "com.atproto.repo.applyWrites#create",
                    "collection": POST,
                    "value": {
                        "$type": POST,
                        "text": f"post number {number} of many, " + "as long as people write " * 8,
                        "createdAt": "2026-01-02T03:04:05.000Z",
                    },
                }
                for number in range(first, min(first + BATCH, RECORDS))
            ]
            await alice.client.post("com.atproto.repo.applyWrites", repo=alice.did, writes=writes)
        began = time.monotonic()
        await hosts.migration.start_in(request_for(alice))
        view = await hosts.migration.settle(alice.did)
        copied_s = time.monotonic() - began
        assert view["step"] == "approve", view
        assert view["progress"]["records"] >= RECORDS
        await alice.post("written while the move waits")
        await hosts.migration.go_on(alice.did, Given(requests_token=True))
        code = await plc_code(hosts.old)
        began = time.monotonic()
        await hosts.migration.go_on(alice.did, Given(plc_token=code))
        view = await hosts.migration.settle(alice.did)
        switched_s = time.monotonic() - began
        size = view["progress"]["repoBytes"]
        print(
            f"{RECORDS} records, {size:,} bytes read: copied in {copied_s:.1f} s, caught up and"
            f" switched in {switched_s:.1f} s, nowhere for {view['pausedMs']} ms"
        )
        assert (view["status"], view["warnings"]) == ("done", []), view
        assert view["pausedMs"] <= MAX_PAUSE_MS
