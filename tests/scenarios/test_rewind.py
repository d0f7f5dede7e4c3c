"""A data folder that was put back from an older copy: readers are told to look again."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from pds.config import Config
from pds.protocol.frames import decode_frame
from pds.store.events import get_event_page
from tests.app.test_start import small_relay
from tests.scenarios.conftest import Host, host_in
from tests.support_client import sign_up


async def events_after(host: Host, seq: int) -> list:
    page = await host.server.engine.read("test.page", get_event_page, seq, 1000, 1 << 30)
    return list(page.events)


@pytest.mark.parametrize("is_rewound", [True, False])
async def test_repos_of_a_rewound_database_are_stated_again(
    tmp_path: Path, is_rewound: bool
) -> None:
    """Promise A3, ACC-65: a relay has seen more than this database ever gave out, or has not."""
    async with small_relay() as relay:

        def change(config: Config) -> Config:
            federation = replace(config.federation, crawlers=(relay.url,))
            return replace(config, federation=federation)

        async with host_in(tmp_path, change=change) as host:
            alice = await sign_up(host.client, "alice.test")
            seq = host.server.engine.last_seq
        relay.seq = seq + 5_000_000 if is_rewound else seq
        async with host_in(tmp_path, change=change) as host:
            await host.server.services.rewinds.restate()
            if not is_rewound:
                assert await events_after(host, seq) == []
                return
            async with asyncio.timeout(60):
                while not (events := await events_after(host, seq)):
                    await host.server.services.rewinds.restate()
            [event] = events
            assert event.seq > relay.seq
            frame = decode_frame(event.frame)
            assert (frame.type, frame.payload["did"]) == ("#sync", alice.did)
