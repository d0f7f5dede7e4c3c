"""A host gets another name while people, relays and tokens know it by the old one.

A real server process and the command line, as the operator uses them; a strict relay follows.
"""

import asyncio
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pds.cli import run
from pds.protocol.jwt import decode_jwt
from tests.fakes.relay_server import FakeRelay, running_relay
from tests.support_client import Client, Person, XrpcError, sign_up
from tests.support_live import LiveServer, live_server_in

OLD, NEW = "old.test", "new.test"
SERVER = "com.atproto.server"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


async def try_command(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Run a command with the settings of the server, and none that steer the tests."""
    for name in [name for name in os.environ if name.startswith("PDS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        if name.startswith("PDS_"):
            monkeypatch.setenv(name, value)
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = await asyncio.to_thread(run, [*arguments, "--json"])
    return code, out.getvalue(), error.getvalue()


async def command(server: LiveServer, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Run a command that succeeds; return its JSON."""
    code, out, error = await try_command(server, monkeypatch, *arguments)
    assert code == 0, (out, error)
    return json.loads(out)


async def fetch(http: aiohttp.ClientSession, server: LiveServer, path: str, host: str) -> Any:
    """Ask under a host name; return status and text."""
    url = f"http://127.0.0.1:{server.port}{path}"
    async with http.get(url, headers={"Host": host}) as answer:
        return answer.status, await answer.text()


async def upload_by_service_auth(person: Person, aud: str) -> None:
    """Come back with a service token for one of the server's names (XRPC-41)."""
    method = "com.atproto.repo.uploadBlob"
    made = await person.client.get(f"{SERVER}.getServiceAuth", aud=aud, lxm=method)
    await person.client.with_token(made["token"]).upload(b"some bytes", "text/plain")


async def assert_both_names_answer(
    http: aiohttp.ClientSession, server: LiveServer, old_handle: str, did: str
) -> None:
    for name in (OLD, NEW):
        status, text = await fetch(http, server, "/.well-known/did.json", name)
        document = json.loads(text)
        assert (status, document["id"]) == (200, f"did:web:{name}")
        assert document["service"][0]["serviceEndpoint"] == f"https://{NEW}"
        status, text = await fetch(http, server, f"/xrpc/{SERVER}.describeServer", name)
        described = json.loads(text)
        assert (status, described["did"]) == (200, f"did:web:{NEW}")
        assert described["availableUserDomains"] == [f".{NEW}"]
        assert (await fetch(http, server, f"/tls-check?domain={name}", "x"))[0] == 200
        path = f"/xrpc/com.atproto.sync.getHostStatus?hostname={name}"
        assert json.loads((await fetch(http, server, path, name))[1])["hostname"] == NEW
    assert await fetch(http, server, "/.well-known/atproto-did", old_handle) == (200, did)


async def follow_as(relay: FakeRelay, name: str) -> None:
    """Let the relay know the host by a name, with the cursor and the repos that it has."""
    await relay.disconnect()
    assert relay.rules is not None
    relay.rules.hostname = name


async def test_a_host_gets_another_name_and_nobody_loses_anything(
    tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions, tokens, handles, the firehose: all of them outlive the name."""
    settings = {
        "PDS_HOSTNAME": OLD,
        "PDS_SERVICE_HANDLE_DOMAINS": "",
        "PDS_BSKY_APP_VIEW_URL": "",
        "PDS_HOSTNAME_MOVES_PER_HOUR": "36000",
    }
    async with live_server_in(tmp_path / "data", **settings) as server:
        urls = {OLD: server.url, NEW: server.url}
        async with running_relay(server.plc_url, urls) as relay:
            await story(server, relay, http, monkeypatch)


async def story(
    server: LiveServer,
    relay: FakeRelay,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(http, server.url)
    relay.follow(OLD)
    alice = await sign_up(client, "alice.old.test")
    bob = await sign_up(client, "bob.old.test")
    await alice.post("under the old name")
    await relay.wait_for(9)
    for arguments in (["check"], ["move", "--dry-run"]):
        code, _, error = await try_command(server, monkeypatch, "hostname", *arguments)
        assert (code, "PDS_FORMER_HOSTNAMES" in error) == (1, True)

    assert await server.stop() == 0
    await relay.disconnect()
    server.environment |= {
        "PDS_HOSTNAME": NEW,
        "PDS_FORMER_HOSTNAMES": OLD,
        "PDS_CRAWLERS": relay.url,
    }
    await server.start()
    relay.requests.clear()
    await assert_both_names_answer(http, server, "alice.old.test", alice.did)
    await assert_nothing_is_lost(client, alice, bob)
    relay.follow(OLD)
    await relay.wait_for(10)

    planned = await command(server, monkeypatch, "hostname", "move", "--handles", "--dry-run")
    assert planned["counts"]["moved"] == 2
    await assert_move_is_followed(server, relay, (alice, bob), monkeypatch)
    await alice.post("under the new name")
    carol = await sign_up(client, "carol.new.test")
    await carol.post("never knew the old one")
    await relay.wait_for(18)
    assert relay.rules is not None
    assert relay.rules.dropped == []
    assert (await alice.client.get(f"{SERVER}.getSession"))["handle"] == "alice.new.test"

    # The same without a running server finds that all is done.
    assert await server.stop() == 0
    report = await command(server, monkeypatch, "hostname", "move", "--handles", "--no-check")
    assert report["counts"]["current"] == 3


async def assert_nothing_is_lost(client: Client, alice: Person, bob: Person) -> None:
    """What was made under the old name goes on before any identity was told."""
    assert (await alice.client.get(f"{SERVER}.getSession"))["handle"] == "alice.old.test"
    await alice.post("with the old token")
    refreshed = await client.with_token(bob.refresh_token).post(f"{SERVER}.refreshSession")
    assert decode_jwt(refreshed["accessJwt"]).claims["aud"] == f"did:web:{NEW}"
    for aud in (f"did:web:{OLD}", f"did:web:{NEW}"):
        await upload_by_service_auth(alice, aud)
    with pytest.raises(XrpcError) as caught:
        await upload_by_service_auth(alice, "did:web:other.test")
    assert caught.value.name == "BadJwtAudience"
    with pytest.raises(XrpcError) as caught:
        await sign_up(client, "carol.old.test")
    assert caught.value.name == "UnsupportedDomain"
    assert (await alice.client.get(f"{SERVER}.checkAccountStatus"))["validDid"] is True


async def assert_move_is_followed(
    server: LiveServer,
    relay: FakeRelay,
    people: tuple[Person, Person],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The relay goes on under the new name with the number that it has."""
    await follow_as(relay, NEW)
    report = await command(server, monkeypatch, "hostname", "move", "--handles", "--no-check")
    assert report["counts"]["moved"] == 2
    assert relay.requests[:1] == [NEW]
    assert [entry["accepted"] for entry in report["relays"]] == [True]
    passed = await relay.wait_for(12)
    told = [(kind, payload["did"], payload["handle"]) for kind, payload in passed[10:]]
    handles = ("alice.new.test", "bob.new.test")
    pairs = list(zip(people, handles, strict=True))
    assert told == [("#identity", person.did, handle) for person, handle in pairs]
    http = people[0].client.http
    for person, handle in pairs:
        async with http.get(f"{server.plc_url}/{person.did}") as answer:
            document = await answer.json(content_type=None)
        assert document["service"][0]["serviceEndpoint"] == f"https://{NEW}"
        assert document["alsoKnownAs"] == [f"at://{handle}"]
        assert await fetch(http, server, "/.well-known/atproto-did", handle) == (200, person.did)


async def test_a_server_that_is_killed_in_the_middle_moves_everybody_once(
    tmp_path: Path, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command waits for the server, and what was cut off is finished by the next process."""
    monkeypatch.setattr("pds.cli.hostname.RETRY_PAUSE_S", 0.3)
    settings = {
        "PDS_HOSTNAME": OLD,
        "PDS_SERVICE_HANDLE_DOMAINS": "",
        "PDS_BSKY_APP_VIEW_URL": "",
        "PDS_HOSTNAME_MOVES_PER_HOUR": "36000",
    }
    async with live_server_in(tmp_path / "data", **settings) as server:
        client = Client(http, server.url)
        people = [await sign_up(client, f"person{n}.old.test") for n in range(5)]
        assert await server.stop() == 0
        server.environment |= {"PDS_HOSTNAME": NEW, "PDS_FORMER_HOSTNAMES": OLD}
        await server.start()
        moving = asyncio.ensure_future(
            command(server, monkeypatch, "hostname", "move", "--handles", "--no-check")
        )
        while not moving.done() and await count_moved(http, server, people) < 2:
            await asyncio.sleep(0.01)
        await server.kill()
        await server.start()
        report = await moving
        assert report["counts"]["moved"] + report["counts"]["current"] == 5
        for person in people:
            async with http.get(f"{server.plc_url}/{person.did}/log") as answer:
                operations = await answer.json()
            assert len(operations) == 2
            session = await person.client.get(f"{SERVER}.getSession")
            assert session["handle"] == operations[-1]["alsoKnownAs"][0].removeprefix("at://")
        events = await command(server, monkeypatch, "event", "list", "--kind", "identity")
        told = [event["did"] for event in events["events"] if NEW in event.get("handle", "")]
        assert sorted(told) == sorted(person.did for person in people)


async def count_moved(http: aiohttp.ClientSession, server: LiveServer, people: list[Person]) -> int:
    """How many identities name the new host."""
    count = 0
    for person in people:
        async with http.get(f"{server.plc_url}/{person.did}/data") as answer:
            services = (await answer.json())["services"]
        count += services["atproto_pds"]["endpoint"] == f"https://{NEW}"
    return count
