"""Limits over real HTTP: writes, uploads, mail and guesses are counted for the right subject."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pds.services.limits import RateSettings
from pds.services.rate_limits import RateLimits
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, XrpcError, sign_up

NOTE = "com.example.note"
START_S = 1_760_000_000.0


class Time:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@asynccontextmanager
async def limited_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **figures: Any
) -> AsyncIterator[tuple[Host, Time]]:
    """A host with limits and a clock of theirs that stands still."""
    time = Time()

    def with_time(**parts: Any) -> RateLimits:
        return RateLimits(**{**parts, "now_s": time})

    monkeypatch.setattr("pds.app.wiring.RateLimits", with_time)
    rates = RateSettings(**figures)
    async with host_in(folder, change=lambda config: replace(config, rates=rates)) as host:
        yield host, time


async def refused(call: Any) -> XrpcError:
    with pytest.raises(XrpcError) as caught:
        await call
    assert (caught.value.status, caught.value.name) == (429, "RateLimitExceeded")
    return caught.value


async def test_writes_cost_points_of_the_account_until_the_hour_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create 3, update 2, delete 1; a batch their sum (XRPC-70)."""
    async with limited_host(tmp_path, monkeypatch, writes_hour=12, writes_day=100) as (host, time):
        alice = await sign_up(host.client, "alice.test")
        bob = await sign_up(host.client, "bob.test")
        made = await alice.create(NOTE, {"n": 1})
        rkey = made["uri"].rpartition("/")[2]
        where = {"repo": alice.did, "collection": NOTE, "rkey": rkey}
        record = {"$type": NOTE, "n": 2}
        await alice.client.post("com.atproto.repo.putRecord", record=record, **where)
        await alice.client.post("com.atproto.repo.deleteRecord", **where)
        writes = [
            {"$type": f"com.atproto.repo.applyWrites#{kind}", "collection": NOTE, **more}
            for kind, more in (
                ("create", {"value": record, "rkey": "one"}),
                ("update", {"value": record, "rkey": "one"}),
            )
        ]
        batch = {"repo": alice.did, "writes": writes}
        await alice.client.post("com.atproto.repo.applyWrites", batch)  # 11 points by now
        error = await refused(alice.create(NOTE, {"n": 3}))
        assert error.headers["RateLimit-Policy"] == "12;w=3600"
        assert error.headers["RateLimit-Remaining"] == "1"
        where["rkey"] = "one"
        await alice.client.post("com.atproto.repo.deleteRecord", **where)
        await refused(alice.client.post("com.atproto.repo.deleteRecord", **where))
        await bob.create(NOTE, {"n": 1})
        time.now_s += int(error.headers["Retry-After"])
        await alice.create(NOTE, {"n": 3})


async def test_uploads_are_counted_by_account_in_number_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"uploads_day": 4, "upload_bytes_day": 1000}
    async with limited_host(tmp_path, monkeypatch, **figures) as (host, time):
        alice = await sign_up(host.client, "alice.test")
        bob = await sign_up(host.client, "bob.test")
        await alice.client.upload(b"a" * 600, "text/plain")
        error = await refused(alice.client.upload(b"b" * 600, "text/plain"))
        assert error.headers["RateLimit-Policy"] == "1000;w=86400"

        async def in_pieces(size: int) -> AsyncIterator[bytes]:
            for _ in range(size // 100):
                yield b"c" * 100

        nsid = "com.atproto.repo.uploadBlob"
        headers = {"Content-Type": "text/plain"}
        await alice.client.call("POST", nsid, data=in_pieces(300), headers=headers)
        await refused(alice.client.call("POST", nsid, data=in_pieces(300), headers=headers))
        for letter in b"defg":
            await bob.client.upload(bytes([letter]), "text/plain")
        error = await refused(bob.client.upload(b"h", "text/plain"))
        assert error.headers["RateLimit-Policy"] == "4;w=86400"
        # Who moves in has ten times as much.
        await bob.client.post("com.atproto.server.deactivateAccount", {})
        await bob.client.upload(b"i" * 2000, "text/plain")
        time.now_s += 86_400
        await alice.client.upload(b"b" * 600, "text/plain")


async def test_exports_do_not_count_as_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with limited_host(tmp_path, monkeypatch, requests=3) as (host, _):
        alice = await sign_up(host.client, "alice.test")
        for _ in range(6):
            await host.client.get("com.atproto.sync.getRepo", did=alice.did)
        await refused(host.client.get("com.atproto.sync.getRepo", did=alice.did))
        for _ in range(2):
            await host.client.get("com.atproto.sync.getLatestCommit", did=alice.did)
        await refused(host.client.get("com.atproto.sync.getLatestCommit", did=alice.did))


async def test_keys_cannot_be_reserved_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference has no limit here (ACC-15)."""
    async with limited_host(tmp_path, monkeypatch) as (host, _):
        error = await refused(_repeat(host.client, 101, "com.atproto.server.reserveSigningKey"))
        assert error.headers["RateLimit-Policy"] == "100;w=300"


async def test_resets_are_limited_by_address_and_by_mailbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether there is such an account makes no difference (promise D5)."""
    async with limited_host(tmp_path, monkeypatch) as (host, _):
        nsid = "com.atproto.server.requestPasswordReset"
        await sign_up(host.client, "alice.test")
        for email in ("alice@example.test", "nobody@example.test"):
            error = await refused(_repeat(host.client, 6, nsid, {"email": email}))
            assert error.headers["RateLimit-Policy"] == "5;w=3600"
        variant = {"email": " Alice@Example.TEST"}
        await refused(_repeat(host.client, 1, nsid, variant))
        more = [{"email": f"{number}@example.test"} for number in range(3)]
        for body in more[:2]:
            await _repeat(host.client, 1, nsid, body)
        error = await refused(_repeat(host.client, 1, nsid, more[2]))
        assert error.headers["RateLimit-Policy"] == "15;w=3600"
        # The owner is elsewhere, and gets a mail until very many have asked for one.
        passed = 0
        for number in range(40):
            forwarded = {"X-Forwarded-For": f"203.0.113.{number}"}
            try:
                await host.client.call(
                    "POST", nsid, json={"email": "alice@example.test"}, headers=forwarded
                )
                passed += 1
            except XrpcError as refusal:
                error = refusal
        assert passed == 25
        assert error.headers["RateLimit-Policy"] == "30;w=3600"


async def test_guesses_stay_limited_for_the_exempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a bypass nor PDS_RATE_LIMITS_ENABLED=false makes guessing free (promise B6)."""
    figures = {"enabled": False, "bypass_key": "key"}
    async with (
        limited_host(tmp_path, monkeypatch, **figures) as (host, time),
        aiohttp.ClientSession(headers={"x-ratelimit-bypass": "key"}) as http,
    ):
        url = f"{host.url}/xrpc/com.atproto.server.createInviteCode"

        async def ask(password: str) -> aiohttp.ClientResponse:
            headers = {"Authorization": aiohttp.encode_basic_auth("admin", password)}
            async with http.post(url, json={"useCount": 1}, headers=headers) as answer:
                return answer

        answers = [await ask("wrong") for _ in range(11)]
        assert [answer.status for answer in answers] == [401] * 10 + [429]
        assert int(answers[-1].headers["Retry-After"]) <= 300
        assert answers[-1].headers["RateLimit-Policy"] == "10;w=300"
        time.now_s += 300
        assert (await ask(host.admin_password)).status == 200


async def test_a_restart_does_not_forget_the_writes_of_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"writes_hour": 6}
    async with limited_host(tmp_path, monkeypatch, **figures) as (host, _):
        alice = await sign_up(host.client, "alice.test")
        for _ in range(2):
            await alice.create(NOTE, {})
    async with limited_host(tmp_path, monkeypatch, **figures) as (host, time):
        session = await host.client.post(
            "com.atproto.server.createSession", identifier=alice.did, password=alice.password
        )
        alice.client = host.client.with_token(session["accessJwt"])
        await refused(alice.create(NOTE, {}))
        time.now_s += 3600
        await alice.create(NOTE, {})


async def _repeat(client: Client, count: int, nsid: str, body: Any = None) -> None:
    for _ in range(count):
        await client.post(nsid, {} if body is None else body)
