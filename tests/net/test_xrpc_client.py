"""Small XRPC calls to other hosts."""

import pytest
from aiohttp import web

from pds.errors import BadAnswer, NotResolvable, Rejected, Unreachable
from pds.net.http import HttpSettings, TrustedClient
from pds.net.xrpc_client import XrpcClient, XrpcRejected
from tests.net.servers import serving

NSID = "com.example.method"


@pytest.fixture
async def client():
    settings = HttpSettings.trusted(user_agent="x", allow_private=True)
    async with TrustedClient(settings) as http:
        yield XrpcClient(http)


async def test_query_sends_parameters_as_xrpc_writes_them(client):
    async def handler(request):
        return web.json_response({"path": request.path, "query": list(request.query.items())})

    async with serving(handler) as port:
        params = {"handle": "a b&c.test", "limit": 5, "live": True, "ids": ["x", "y"]}
        answer = await client.query(f"http://127.0.0.1:{port}/", NSID, params)
    assert answer["path"] == f"/xrpc/{NSID}"
    assert answer["query"] == [
        ["handle", "a b&c.test"],
        ["limit", "5"],
        ["live", "true"],
        ["ids", "x"],
        ["ids", "y"],
    ]


async def test_procedure_sends_json_and_may_answer_nothing(client):
    async def handler(request):
        value = await request.json()
        return web.json_response(value) if value["echo"] else web.Response()

    async with serving(handler) as port:
        base = f"http://127.0.0.1:{port}"
        assert await client.procedure(base, NSID, {"echo": 1}) == {"echo": 1}
        assert await client.procedure(base, NSID, {"echo": 0}) == {}


@pytest.mark.parametrize(
    ("status", "body", "kind", "error"),
    [
        (400, {"error": "HandleNotFound", "message": "no"}, XrpcRejected, "HandleNotFound"),
        (401, {"error": "AuthMissing"}, XrpcRejected, "AuthMissing"),
        (400, {"error": 5, "message": 7}, XrpcRejected, "InvalidRequest"),
        (400, [], XrpcRejected, "InvalidRequest"),
        (404, {"error": "HostNotFound"}, XrpcRejected, "HostNotFound"),
        (404, {}, NotResolvable, None),
        (429, {"error": "RateLimitExceeded"}, Unreachable, None),
        (501, {"error": "MethodNotImplemented"}, Unreachable, None),
    ],
)
async def test_refusals_carry_their_name_and_failures_stay_failures(
    client, status, body, kind, error
):
    async def handler(_request):
        return web.json_response(body, status=status)

    async with serving(handler) as port:
        for call in (client.query, client.procedure):
            with pytest.raises(kind) as caught:
                await call(f"http://127.0.0.1:{port}", NSID, {})
            if error is not None:
                assert isinstance(caught.value, Rejected)
                assert (caught.value.status, caught.value.error) == (status, error)


@pytest.mark.parametrize("body", [b"[]", b"null", b"<html>", b"{"])
async def test_answers_that_are_no_object_are_bad(client, body):
    async def handler(_request):
        return web.Response(body=body)

    async with serving(handler) as port:
        for call in (client.query, client.procedure):
            with pytest.raises(BadAnswer):
                await call(f"http://127.0.0.1:{port}", NSID, {})
