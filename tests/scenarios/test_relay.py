"""A strict relay follows the host over real HTTP and WebSocket, and finds nothing to say.

Spec: SYNC-40, SYNC-42, SYNC-43, SYNC-44, SYNC-50, SYNC-52, SYNC-60
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from pds.services.crawlers import Crawlers
from tests.fakes.relay_server import FakeRelay, running_relay
from tests.scenarios.conftest import Host
from tests.support_client import sign_up


@pytest.fixture
async def relay(host: Host) -> AsyncIterator[FakeRelay]:
    """A relay that has connected before anything happened."""
    hostname = host.server.config.netloc
    plc_url = host.server.config.identity.plc_url
    async with running_relay(plc_url, {hostname: host.url}) as relay:
        relay.follow(hostname)
        async with asyncio.timeout(60):
            while host.server.services.firehose.reader_count == 0:
                await asyncio.sleep(0.005)
        yield relay


def kinds(passed: list[tuple[str, Any]]) -> list[str]:
    return [kind for kind, _payload in passed]


async def test_a_new_account_and_its_writes_pass(host: Host, relay: FakeRelay) -> None:
    alice = await sign_up(host.client, "alice.test")
    passed = await relay.wait_for(4)
    assert kinds(passed) == ["#identity", "#account", "#commit", "#sync"]
    assert passed[0][1]["handle"] == "alice.test"
    made = [await alice.post(f"post {n}") for n in range(20)]
    for post in made[::3]:
        await alice.client.post(
            "com.atproto.repo.deleteRecord",
            repo=alice.did,
            collection="app.bsky.feed.post",
            rkey=post["uri"].rpartition("/")[2],
        )
    passed = await relay.wait_for(4 + 20 + 7)
    assert set(kinds(passed[4:])) == {"#commit"}
    assert relay.rules is not None
    assert relay.rules.dropped == []


async def test_a_large_batch_passes(host: Host, relay: FakeRelay) -> None:
    alice = await sign_up(host.client, "alice.test")
    writes = [
        {
            "$type": "com.atproto.repo.applyWrites#create",
            "collection": "com.example.note",
            "rkey": f"note-{n}",
            "value": {"$type": "com.example.note", "n": n, "text": "x" * 2000},
        }
        for n in range(200)
    ]
    await alice.client.post("com.atproto.repo.applyWrites", repo=alice.did, writes=writes)
    passed = await relay.wait_for(5)
    assert len(passed[4][1]["ops"]) == 200


async def test_after_an_outage_the_relay_misses_nothing(host: Host, relay: FakeRelay) -> None:
    alice = await sign_up(host.client, "alice.test")
    await relay.wait_for(4)
    await relay.disconnect()
    for n in range(5):
        await alice.post(f"meanwhile {n}")
    relay.follow(host.server.config.netloc)
    await relay.wait_for(9)
    await alice.post("and now")
    await relay.wait_for(10)
    assert relay.connections == 2


async def test_writers_at_the_same_time_make_one_order(host: Host, relay: FakeRelay) -> None:
    people = [await sign_up(host.client, f"writer{n}.test") for n in range(3)]
    await asyncio.gather(*(person.post(f"{n}") for n in range(8) for person in people))
    passed = await relay.wait_for(3 * 4 + 24)
    seqs = [payload["seq"] for _kind, payload in passed]
    assert seqs == sorted(set(seqs))


async def test_the_host_asks_to_be_crawled_and_is_taken_in(host: Host) -> None:
    hostname = host.server.config.netloc
    plc_url = host.server.config.identity.plc_url
    async with running_relay(plc_url, {hostname: host.url}) as relay:
        crawlers = Crawlers(
            http=host.server.services.crawlers._http,
            relays=[relay.url],
            hostname=hostname,
            reader_count=lambda: host.server.services.firehose.reader_count,
        )
        await crawlers.announce_due()
        assert relay.requests == [hostname]
        assert crawlers.relays[0].failures == 0
        await sign_up(host.client, "alice.test")
        await relay.wait_for(4)


async def test_a_relay_does_not_take_in_a_host_that_does_not_answer(host: Host) -> None:
    plc_url = host.server.config.identity.plc_url
    nowhere = "http://127.0.0.1:9"
    async with running_relay(plc_url, {"gone.example": nowhere}) as relay:
        crawlers = Crawlers(
            http=host.server.services.crawlers._http,
            relays=[relay.url],
            hostname="gone.example",
            reader_count=lambda: 0,
        )
        await crawlers.announce_due()
        assert crawlers.relays[0].failures == 1
        assert urlsplit(relay.url).hostname == "127.0.0.1"
        assert relay.connections == 0
