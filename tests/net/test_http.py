"""The outbound HTTP client: where it goes, and how answers become errors (XRPC-68)."""

import pytest
from aiohttp import web

from pds.errors import BadAnswer, NotResolvable, Rejected, Unreachable
from pds.net.http import GuardedClient, HttpSettings, TrustedClient
from pds.net.http_errors import (
    ForbiddenDestination,
    HttpFailed,
    HttpNotFound,
    HttpRejected,
)
from tests.net.servers import FixedResolver, guarded, ok, serving

FORBIDDEN_URLS = [
    "http://example.com/",
    "ftp://example.com/",
    "https://example.com:8443/",
    "https://user@example.com/",
    "https://user:secret@example.com/",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://2130706433/",
    "https://127.1/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://127.0.0.1./",
    "https://",
    "https:///path",
    "//example.com/",
    "example.com",
    "https://exa mple.com/",
    "https://example.com/\r\nX: y",
    "https://example.com\\@evil.example/",
    "https://exämple.com/",
    "https://example.com:99999/",
    "https://example.com/" + "a" * 9000,
]


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
async def test_guarded_client_refuses_url_before_connecting(url):
    async with GuardedClient(resolver=FixedResolver(["93.184.215.14"])) as client:
        with pytest.raises(ForbiddenDestination):
            await client.get_bytes(url)


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["0.0.0.0"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["::127.0.0.1"],
        ["2002:7f00:1::"],
        ["5f00::1"],
        ["fe80::1"],
        ["fd00::1"],
        ["ff02::1"],
        ["192.88.99.1"],
        ["192.0.0.8"],
        ["127.0.0.1", "::1", "10.0.0.1"],
    ],
)
async def test_guarded_client_never_connects_to_a_private_address(addresses):
    async with GuardedClient(resolver=FixedResolver(addresses)) as client:
        with pytest.raises(ForbiddenDestination):
            await client.get_bytes("https://evil.example.com/")


async def test_ordinary_request_works_and_names_itself():
    seen = {}

    async def handler(request):
        seen.update(request.headers)
        return web.json_response({"path": request.raw_path})

    async with serving(handler) as port, guarded(user_agent="Freehold/1") as client:
        answer = await client.get_json(f"http://pds.test:{port}/a%2Fb?q=1%202")
        assert answer == {"path": "/a%2Fb?q=1%202"}
        assert seen["User-Agent"] == "Freehold/1"
        assert "Cookie" not in seen


async def test_cookies_are_not_kept():
    async def handler(request):
        response = web.json_response({"cookie": request.headers.get("Cookie")})
        response.set_cookie("a", "b")
        return response

    async with serving(handler) as port, guarded() as client:
        await client.get_json(f"http://pds.test:{port}/")
        assert await client.get_json(f"http://pds.test:{port}/") == {"cookie": None}


async def test_redirects_are_off_unless_asked_for():
    async def handler(request):
        raise web.HTTPFound("/other")

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(BadAnswer):
            await client.get_bytes(f"http://pds.test:{port}/")


async def test_bounded_redirects_are_followed_and_drop_authorization_across_origins():
    seen = []

    async def handler(request):
        seen.append((request.host.split(":")[0], request.headers.get("Authorization")))
        if request.path == "/1":
            raise web.HTTPFound(f"http://other.test:{request.url.port}/2")
        return web.Response(text="here")

    async with serving(handler) as port, guarded() as client:
        answer = await client.get_bytes(
            f"http://pds.test:{port}/1", headers={"Authorization": "x"}, max_redirects=1
        )
        assert answer.body == b"here"
        assert seen == [("pds.test", "x"), ("other.test", None)]


async def test_endless_redirects_end():
    async def handler(request):
        raise web.HTTPFound("/again")

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(BadAnswer):
            await client.get_bytes(f"http://pds.test:{port}/", max_redirects=3)


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/", "http://127.0.0.1:{port}/", "file:///etc/passwd", "http://[::1]/"],
)
async def test_redirect_to_a_forbidden_url_is_refused(target):
    hits = []

    async def handler(request):
        hits.append(request.host)
        raise web.HTTPFound(target.format(port=request.url.port))

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(ForbiddenDestination):
            await client.get_bytes(f"http://pds.test:{port}/", max_redirects=3)
    assert len(hits) == 1


async def test_redirect_to_a_name_with_a_private_address_is_refused():
    async def handler(request):
        raise web.HTTPFound(f"http://inner.test:{request.url.port}/")

    resolver = FixedResolver(["127.0.0.1"], ["127.0.0.2"])
    async with serving(handler) as port, guarded(resolver) as client:
        with pytest.raises(ForbiddenDestination):
            await client.get_bytes(f"http://pds.test:{port}/", max_redirects=3)


async def test_address_is_checked_at_each_connection_not_once_per_name():
    resolver = FixedResolver(["127.0.0.1"], ["127.0.0.2"])
    async with serving(ok) as port:
        async with guarded(resolver) as client:
            assert await client.get_json(f"http://pds.test:{port}/") == {"ok": True}
        # The cached connection is gone; the same name now leads elsewhere.
        async with guarded(resolver) as client:
            with pytest.raises(ForbiddenDestination):
                await client.get_json(f"http://pds.test:{port}/")


async def test_one_allowed_address_among_forbidden_ones_is_used():
    client = guarded(FixedResolver(["127.0.0.2", "127.0.0.1"]))
    async with serving(ok) as port, client:
        assert await client.get_json(f"http://pds.test:{port}/") == {"ok": True}


async def test_trusted_client_reaches_private_addresses_only_when_allowed():
    async with serving(ok) as port:
        url = f"http://127.0.0.1:{port}/"
        closed = HttpSettings.trusted(user_agent="x")
        async with TrustedClient(closed) as client:
            with pytest.raises(ForbiddenDestination):
                await client.get_json(url)
        opened = HttpSettings.trusted(user_agent="x", allow_private=True)
        async with TrustedClient(opened) as client:
            assert await client.get_json(url) == {"ok": True}
            assert await client.get_json(f"http://localhost:{port}/") == {"ok": True}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, HttpNotFound),
        (410, HttpNotFound),
        (400, HttpRejected),
        (403, HttpRejected),
        (429, HttpFailed),
        (500, HttpFailed),
        (503, HttpFailed),
    ],
)
async def test_status_decides_between_no_and_could_not_find_out(status, kind):
    async def handler(_request):
        return web.json_response({"message": "because"}, status=status)

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(kind) as caught:
            await client.get_json(f"http://pds.test:{port}/")
    assert caught.value.status == status
    assert caught.value.detail == {"message": "because"}
    family = {HttpNotFound: NotResolvable, HttpRejected: Rejected, HttpFailed: Unreachable}[kind]
    assert isinstance(caught.value, family)


async def test_error_body_that_is_no_object_or_too_large_has_no_detail():
    async def handler(request):
        body = b"[1]" if request.path == "/list" else b"x" * 100_000
        return web.Response(body=body, status=400)

    async with serving(handler) as port, guarded() as client:
        for path in ("list", "large"):
            with pytest.raises(HttpRejected) as caught:
                await client.get_bytes(f"http://pds.test:{port}/{path}")
            assert caught.value.detail == {}


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"9" * 10_000, b""])
async def test_invalid_json_is_a_bad_answer(body):
    async def handler(_request):
        return web.Response(body=body)

    async with serving(handler) as port, guarded() as client:
        with pytest.raises(BadAnswer):
            await client.get_json(f"http://pds.test:{port}/")
