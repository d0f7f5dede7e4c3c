"""Who is counted for a request, what the client is told, and who is exempt."""

from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest

from pds.services.limits import RateSettings
from tests.xrpc.support_server import RATE_TIME_S, RunningServer, running_server

ECHO = "/xrpc/test.method.echo?word=a"
PROXIES = (ip_network("127.0.0.0/8"),)


async def statuses(
    server: RunningServer, count: int, path: str = ECHO, **headers: str
) -> list[int]:
    found = []
    async with aiohttp.ClientSession(headers=headers) as http:
        for _ in range(count):
            async with http.get(server.url + path) as answer:
                found.append(answer.status)
    return found


async def test_headers_tell_the_limit_and_a_429_how_long_to_wait() -> None:
    """XRPC-70."""
    answers: list[Any] = []
    async with (
        running_server(rates=RateSettings(requests=3)) as server,
        aiohttp.ClientSession() as http,
    ):
        for path in (ECHO, "/xrpc/test.method.fail?how=named", "/xrpc/no.such.method", ECHO):
            async with http.get(server.url + path) as answer:
                answers.append((answer.status, answer.headers, await answer.json()))
        async with http.options(server.url + ECHO) as answer:
            assert answer.status == 204
            assert "RateLimit-Limit" not in answer.headers
    assert [status for status, _, _ in answers] == [200, 400, 401, 429]
    assert [headers["RateLimit-Remaining"] for _, headers, _ in answers] == ["2", "1", "0", "0"]
    for _, headers, _ in answers:
        assert headers["RateLimit-Limit"] == "3"
        assert headers["RateLimit-Policy"] == "3;w=300"
        assert "RateLimit-Reset" in headers["Access-Control-Expose-Headers"]
    _, headers, body = answers[-1]
    assert body == {"error": "RateLimitExceeded", "message": "Rate Limit Exceeded"}
    wait_s = int(headers["Retry-After"])
    assert 0 < wait_s <= 300
    assert int(headers["RateLimit-Reset"]) == RATE_TIME_S + wait_s
    assert "Retry-After" not in answers[0][1]
    assert server.finished[-2].error == "RateLimitExceeded"


async def test_without_limits_there_are_no_headers() -> None:
    async with (
        running_server() as server,
        aiohttp.ClientSession() as http,
        http.get(server.url + ECHO) as answer,
    ):
        assert not [name for name in answer.headers if name.startswith("RateLimit")]


async def test_behind_a_proxy_each_client_is_counted_for_itself() -> None:
    """Promise B6."""
    settings = RateSettings(requests=2)
    async with running_server(rates=settings, trusted_proxies=PROXIES) as server:
        for address in ("203.0.113.7", "203.0.113.8", "::ffff:203.0.113.9", "2001:db8:0:1::1"):
            found = await statuses(server, 3, **{"X-Forwarded-For": address})
            assert found == [200, 200, 429], address
        same_network = {"X-Forwarded-For": "2001:db8:0:1:ffff::2"}
        assert await statuses(server, 1, **same_network) == [429]
        next_network = {"X-Forwarded-For": "2001:db8:0:2::1"}
        assert await statuses(server, 1, **next_network) == [200]


@pytest.mark.parametrize("proxies", [(), PROXIES])
async def test_an_invented_address_makes_nobody_new(proxies: Any) -> None:
    """Neither without a proxy nor before the address that a proxy added."""
    async with running_server(rates=RateSettings(requests=3), trusted_proxies=proxies) as server:
        found = []
        for number in range(5):
            headers = {"X-Forwarded-For": f"198.51.100.{number}, 203.0.113.7"}
            found += await statuses(server, 1, **headers)
        assert found == [200, 200, 200, 429, 429]


async def test_a_proxy_that_nobody_configured_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_server(trusted_proxies=()) as server:
        await statuses(server, 2)
        assert not caplog.records
        await statuses(server, 3, **{"X-Forwarded-For": "203.0.113.7"})
    (record,) = caplog.records
    assert record.getMessage() == "listener.proxy_not_trusted"
    assert vars(record)["address"] == "127.0.0.1"


async def test_the_key_and_the_networks_of_the_operator_are_exempt() -> None:
    settings = RateSettings(
        requests=1,
        bypass_key="let me through",
        bypass_networks=(ip_network("203.0.113.0/24"), ip_network("2001:db8::/32")),
    )
    async with running_server(rates=settings, trusted_proxies=PROXIES) as server:
        assert await statuses(server, 3, **{"x-ratelimit-bypass": "let me through"}) == [200] * 3
        for address in ("203.0.113.7", "::ffff:203.0.113.8", "2001:db8::5"):
            found = await statuses(server, 3, **{"X-Forwarded-For": address})
            assert found == [200] * 3, address
        for wrong in ("let me", "", "let me throug\u00e9"):
            found = await statuses(server, 2, **{"x-ratelimit-bypass": wrong})
            assert 429 in found, wrong


async def test_an_empty_key_lets_nobody_through() -> None:
    async with running_server(rates=RateSettings(requests=1, bypass_key="")) as server:
        assert await statuses(server, 2, **{"x-ratelimit-bypass": ""}) == [200, 429]


async def test_one_account_at_many_addresses_has_twice_as_many_requests() -> None:
    """Promise B6: also for methods that are passed on to other services."""
    async with running_server(rates=RateSettings(requests=2), trusted_proxies=PROXIES) as server:
        found = []
        for number, path in enumerate(("test.method.authSession", "other.service.method") * 3):
            headers = {"X-Forwarded-For": f"203.0.113.{number}", "Authorization": "Bearer full"}
            found += await statuses(server, 1, f"/xrpc/{path}", **headers)
        assert found == [200] * 4 + [429] * 2
        assert await statuses(server, 1, **{"X-Forwarded-For": "203.0.113.9"}) == [200]


async def test_a_slash_at_the_end_is_the_same_method() -> None:
    async with running_server(rates=RateSettings(requests=2)) as server:
        found = await statuses(server, 1)
        found += await statuses(server, 2, "/xrpc/test.method.echo/?word=a")
        assert found == [200, 200, 429]
