"""Every credential against every level (XRPC-20 to XRPC-28)."""

import base64

import aiohttp
import pytest

from pds.errors import RequestError
from pds.services.admin_auth import FAILURES_PER_ADDRESS, WINDOW_S, AdminAuth
from pds.services.rate_limits import RateLimits
from tests.xrpc.support_server import running_server


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


HEADERS = {
    "none": None,
    "full": "Bearer full",
    "app": "bearer app",
    "takendown": "Bearer takendown",
    "expired": "Bearer expired",
    "junk": "Bearer junk",
    "service": "Bearer service:test.method.auth",
    "admin": basic("admin:correct:horse"),
    "wrong admin": basic("admin:wrong"),
    "bad basic": "Basic !!!",
    "dpop": "DPoP full",
    "no token": "Bearer",
    "three parts": "Bearer full full",
}

MISSING = (401, "AuthMissing")
INVALID = (400, "InvalidToken")
EXPIRED = (400, "ExpiredToken")
REFUSED = (401, "AuthenticationRequired")
TAKENDOWN = (401, "AccountTakedown")

MATRIX = {
    "None": dict.fromkeys(HEADERS, (200, None)),
    "Optional": {
        "none": (200, None),
        "full": (200, "session"),
        "app": (200, "session"),
        "takendown": (200, "session"),
        "expired": EXPIRED,
        "junk": INVALID,
        "service": INVALID,
        "admin": (200, "admin"),
        "wrong admin": REFUSED,
        "bad basic": REFUSED,
        "dpop": REFUSED,
        "no token": REFUSED,
        "three parts": REFUSED,
    },
    "Session": {
        "none": MISSING,
        "full": (200, "session"),
        "app": (200, "session"),
        "takendown": TAKENDOWN,
        "expired": EXPIRED,
        **dict.fromkeys(
            ("junk", "service", "admin", "wrong admin", "bad basic", "dpop", "no token"), INVALID
        ),
        "three parts": INVALID,
    },
    "SessionTakendownOk": {
        "none": MISSING,
        "full": (200, "session"),
        "app": (200, "session"),
        "takendown": (200, "session"),
        "expired": EXPIRED,
        **dict.fromkeys(
            ("junk", "service", "admin", "wrong admin", "bad basic", "dpop", "no token"), INVALID
        ),
        "three parts": INVALID,
    },
    "Full": {
        "none": MISSING,
        "full": (200, "session"),
        "takendown": TAKENDOWN,
        "expired": EXPIRED,
        **dict.fromkeys(
            ("app", "junk", "service", "admin", "wrong admin", "bad basic", "dpop"), INVALID
        ),
        **dict.fromkeys(("no token", "three parts"), INVALID),
    },
    "Refresh": {
        "none": MISSING,
        **dict.fromkeys(("full", "app", "takendown", "expired", "junk", "service"), (200, None)),
        **dict.fromkeys(("admin", "wrong admin", "bad basic", "dpop"), INVALID),
        **dict.fromkeys(("no token", "three parts"), INVALID),
    },
    "Admin": {
        "none": REFUSED,
        "admin": (200, "admin"),
        **dict.fromkeys(
            ("full", "app", "takendown", "expired", "junk", "service", "wrong admin"), REFUSED
        ),
        **dict.fromkeys(("bad basic", "dpop", "no token", "three parts"), REFUSED),
    },
    "SessionOrService": {
        "none": MISSING,
        "full": (200, "session"),
        "app": (200, "session"),
        "takendown": TAKENDOWN,
        "expired": EXPIRED,
        "service": (200, "service"),
        **dict.fromkeys(("junk", "admin", "wrong admin", "bad basic", "dpop"), INVALID),
        **dict.fromkeys(("no token", "three parts"), INVALID),
    },
    "ServiceOptional": {
        "none": (200, None),
        "service": (200, "service"),
        **dict.fromkeys(
            ("full", "app", "takendown", "expired", "junk"), (401, "BadJwtLexiconMethod")
        ),
        **dict.fromkeys(("admin", "wrong admin", "bad basic", "dpop"), INVALID),
        **dict.fromkeys(("no token", "three parts"), INVALID),
    },
}


@pytest.mark.parametrize("level", MATRIX)
async def test_each_credential_at_each_level(level: str) -> None:
    """(XRPC-20, XRPC-21, XRPC-24, XRPC-28)"""
    assert set(MATRIX[level]) == set(HEADERS)
    async with running_server() as server, aiohttp.ClientSession() as http:
        for name, expected in MATRIX[level].items():
            text = HEADERS[name]
            if text is not None and "service:" in text:
                text += level
            headers = {} if text is None else {"Authorization": text}
            url = f"{server.url}/xrpc/test.method.auth{level}"
            async with http.get(url, headers=headers) as answer:
                body = await answer.json()
                got = body["kind"] if answer.status == 200 else body["error"]
                assert (answer.status, got) == expected, name
                if answer.status == 401:
                    scheme = answer.headers["WWW-Authenticate"].split()[0]
                    assert scheme == (
                        "Basic"
                        if level == "Admin" or "admin" in name or name == "bad basic"
                        else "Bearer"
                    ), name


async def test_a_refresh_token_reaches_the_handler_unread() -> None:
    async with running_server() as server, aiohttp.ClientSession() as http:
        headers = {"Authorization": "Bearer abc"}
        url = f"{server.url}/xrpc/test.method.authRefresh"
        async with http.get(url, headers=headers) as answer:
            assert (await answer.json())["token"] == "abc"


async def test_guesses_at_the_admin_password_are_limited() -> None:
    now_s = 0.0
    admin = AdminAuth("right", RateLimits(now_s=lambda: now_s))
    for _ in range(FAILURES_PER_ADDRESS):
        assert not await admin.check("admin", "wrong", address="a")
    with pytest.raises(RequestError) as caught:
        await admin.check("admin", "right", address="a")
    assert caught.value.status == 429
    assert 0 < int(caught.value.headers["Retry-After"]) <= WINDOW_S
    assert await admin.check("admin", "right", address="b")
    now_s += int(caught.value.headers["Retry-After"])
    assert await admin.check("admin", "right", address="a")


async def test_the_right_password_clears_the_guesses_of_its_address() -> None:
    admin = AdminAuth("right", RateLimits(now_s=lambda: 0.0))
    for _ in range(20):  # 180 in all, more than the host allows together
        for _ in range(FAILURES_PER_ADDRESS - 1):
            assert not await admin.check("admin", "wrong", address="a")
        assert await admin.check("admin", "right", address="a")


async def test_guesses_from_many_addresses_are_limited_together() -> None:
    admin = AdminAuth("right", RateLimits(now_s=lambda: 0.0))
    for number in range(100):
        assert not await admin.check("admin", "wrong", address=str(number))
    with pytest.raises(RequestError):
        await admin.check("admin", "right", address="another")


@pytest.mark.parametrize("password", [None, ""])
async def test_without_a_password_nobody_is_admin(password: str | None) -> None:
    admin = AdminAuth(password)
    assert not await admin.check("admin", "", address="a")
    assert not await admin.check("admin", "None", address="a")
    assert not await AdminAuth("x").check("root", "x", address="a")


async def test_bytes_that_are_no_text_are_bad_credentials() -> None:
    async with running_server() as server:
        answer = await server.raw(
            b"GET /xrpc/test.method.authAdmin HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Basic \xff\xfe\r\nConnection: close\r\n\r\n"
        )
    assert answer.startswith(b"HTTP/1.1 401")


async def test_an_ipv6_network_guesses_as_one() -> None:
    """Promise B6: whoever has an IPv6 network has 2**64 addresses."""
    admin = AdminAuth("right", RateLimits(now_s=lambda: 0.0))
    for number in range(FAILURES_PER_ADDRESS):
        assert not await admin.check("admin", "no", address=f"2001:db8:0:1::{number:x}")
    with pytest.raises(RequestError):
        await admin.check("admin", "right", address="2001:db8:0:1:ffff::1")
    assert await admin.check("admin", "right", address="2001:db8:0:2::1")
