"""Records and repos over HTTP, by the shipped schemas: names, shapes and texts that clients see."""

import asyncio
import io
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from pds.errors import RequestError
from pds.protocol.car import read_car
from pds.protocol.cid import Cid
from pds.protocol.repo_verify import BlockMap, verify_repo
from pds.services import Services, hosting
from pds.services.hosting import Hosting
from pds.services.limits import RequestLimits
from pds.xrpc import com_atproto_repo, com_atproto_sync
from pds.xrpc.listener import Listener, ListenerSettings
from pds.xrpc.server import Call, XrpcServer
from tests.services.repo_host import ALICE, BOB, CATALOG, LIKE, POST, RepoHost, repo_host

CREATED = "2026-01-01T00:00:00.000Z"
RECORD = {"text": "hello", "createdAt": CREATED}
STRANGE = "com.example.unknown"


class Sessions:
    """The token is the DID."""

    def __init__(self, host: RepoHost) -> None:
        self._host = host

    async def authenticate_access(self, token: str) -> Any:
        if token not in self._host.aids:
            raise RequestError("InvalidToken", "Token could not be verified")
        return self._host.principal(cast(Any, token))


@dataclass
class Client:
    url: str
    session: aiohttp.ClientSession
    host: RepoHost

    async def get(self, method: str, auth: str | None = None, **params: Any) -> tuple[int, Any]:
        headers = {} if auth is None else {"Authorization": f"Bearer {auth}"}
        async with self.session.get(
            f"{self.url}/xrpc/com.atproto.{method}", params=params, headers=headers
        ) as answer:
            body = await answer.read()
            is_json = answer.content_type == "application/json"
            return answer.status, json.loads(body) if is_json else body

    async def post(self, method: str, auth: str | None = ALICE, **body: Any) -> tuple[int, Any]:
        self.host.clock.advance(1)
        headers = {"Content-Type": "application/json"}
        if auth is not None:
            headers["Authorization"] = f"Bearer {auth}"
        async with self.session.post(
            f"{self.url}/xrpc/com.atproto.repo.{method}", data=json.dumps(body), headers=headers
        ) as answer:
            return answer.status, json.loads(await answer.read())


async def no_fallback(call: Call) -> None:
    raise AssertionError(call.nsid)


@pytest.fixture
async def client(tmp_path: Path):
    async with repo_host(tmp_path) as host:
        await host.add_account()
        services = SimpleNamespace(
            catalog=CATALOG,
            limits=RequestLimits(),
            sessions=Sessions(host),
            service_tokens=SimpleNamespace(is_service_token=lambda _token: False),
            repos=host.repos,
            exports=host.exports,
            blobs=host.blobs,
            hosting=Hosting(engine=host.engine, hostname="pds.test"),
        )
        server = XrpcServer(
            cast(Services, services),
            [com_atproto_repo.routes, com_atproto_sync.routes],
            fallback=no_fallback,
            observe=lambda _finished: None,
            check_outputs=True,
        )
        listener = Listener(server.handle, ListenerSettings())
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        tcp = await asyncio.get_running_loop().create_server(listener, sock=sock)
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{sock.getsockname()[1]}", session, host)
        tcp.close()
        await listener.shutdown(1)


async def create(client: Client, **fields: Any) -> tuple[int, Any]:
    return await client.post(
        "createRecord", **({"repo": ALICE, "collection": POST, "record": RECORD} | fields)
    )


async def test_a_record_from_creation_to_deletion(client):
    """XRPC-95."""
    status, made = await create(client)
    assert status == 200
    assert made["uri"].startswith(f"at://{ALICE}/{POST}/")
    assert made["validationStatus"] == "valid"
    assert made["commit"].keys() == {"cid", "rev"}
    rkey = made["uri"].rsplit("/", 1)[1]
    place = {"repo": "Alice.Test", "collection": POST, "rkey": rkey}
    status, got = await client.get("repo.getRecord", **place)
    assert (status, got["cid"], got["value"]["text"]) == (200, made["cid"], "hello")
    changed = RECORD | {"text": "changed"}
    status, put = await client.post(
        "putRecord", **place, record=changed, swapRecord=made["cid"], validate=True
    )
    assert (status, put["uri"]) == (200, made["uri"])
    status, again = await client.post("putRecord", **place, record=changed, validate=False)
    assert (status, again) == (200, {"uri": put["uri"], "cid": put["cid"]})
    status, gone = await client.post("deleteRecord", **place, swapRecord=put["cid"])
    assert (status, gone.keys()) == (200, {"commit"})
    assert await client.post("deleteRecord", **place) == (200, {})
    status, error = await client.get("repo.getRecord", **place)
    assert (status, error["error"]) == (400, "RecordNotFound")
    assert error["message"] == f"Could not locate record: at://{ALICE}/{POST}/{rkey}"
    client.host.verify_events()


async def test_a_batch(client):
    """XRPC-95: results in input order."""
    kind = "com.atproto.repo.applyWrites#"
    status, answer = await client.post(
        "applyWrites",
        repo=ALICE,
        writes=[
            {"$type": kind + "create", "collection": POST, "value": RECORD},
            {"$type": kind + "create", "collection": STRANGE, "rkey": "a", "value": {}},
        ],
    )
    assert status == 200
    assert [item["$type"] for item in answer["results"]] == [kind + "createResult"] * 2
    assert [item["validationStatus"] for item in answer["results"]] == ["valid", "unknown"]
    place = {"collection": STRANGE, "rkey": "a"}
    status, answer = await client.post(
        "applyWrites",
        repo=ALICE,
        swapCommit=answer["commit"]["cid"],
        writes=[
            {"$type": kind + "update", "value": {"n": 1}} | place,
            {"$type": kind + "delete"} | place,
        ],
    )
    assert (status, answer["results"][1]) == (200, {"$type": kind + "deleteResult"})
    for writes in (
        [{"$type": kind + "update", "value": {}} | place],
        [{"$type": kind + "replace", "value": {}} | place],
        [{"$type": kind + "create", "collection": STRANGE, "value": {}}] * 201,
    ):
        status, error = await client.post("applyWrites", repo=ALICE, writes=writes)
        assert (status, error["error"]) == (400, "InvalidRequest")
    assert await client.post("applyWrites", repo=ALICE, writes=[]) == (200, {"results": []})


async def test_a_second_like_leaves_one(client):
    """XRPC-95."""
    uri = f"at://{BOB}/{POST}/3kaaaaaaaaaaa"
    like = {"subject": {"uri": uri, "cid": str(Cid.of_data(b"x"))}, "createdAt": CREATED}
    for _ in range(2):
        assert (await create(client, collection=LIKE, record=like))[0] == 200
    _status, page = await client.get("repo.listRecords", repo=ALICE, collection=LIKE)
    assert len(page["records"]) == 1


@pytest.mark.parametrize(
    ("fields", "status", "name"),
    [
        ({"repo": BOB}, 401, "AuthenticationRequired"),
        ({"repo": "nobody.test"}, 403, "AccountNotFound"),
        ({"record": {"text": 1, "createdAt": CREATED}}, 400, "InvalidRequest"),
        ({"record": "text"}, 400, "InvalidRequest"),
        ({"collection": "x"}, 400, "InvalidRequest"),
        ({"rkey": "a/b"}, 400, "InvalidRequest"),
        ({"collection": STRANGE, "validate": True}, 400, "InvalidRequest"),
        ({"swapCommit": "x"}, 400, "InvalidRequest"),
        ({"swapCommit": str(Cid.of_data(b"x"))}, 400, "InvalidSwap"),
        ({"auth": None}, 401, "AuthMissing"),
        ({"auth": "junk"}, 400, "InvalidToken"),
    ],
)
async def test_bad_requests_get_their_names_and_change_nothing(client, fields, status, name):
    await client.host.add_account(BOB, "bob.test")
    events = len(client.host.events)
    code, error = await create(client, **fields)
    assert (code, error["error"]) == (status, name)
    assert len(client.host.events) == events


async def test_swap_record_tells_null_from_nothing(client):
    """LEX-111."""
    place = {"repo": ALICE, "collection": STRANGE, "rkey": "a"}
    assert (await client.post("putRecord", **place, record={"n": 1}, swapRecord=None))[0] == 200
    status, error = await client.post("putRecord", **place, record={"n": 2}, swapRecord=None)
    assert (status, error["error"]) == (400, "InvalidSwap")
    assert (await client.post("putRecord", **place, record={"n": 2}))[0] == 200


async def test_pages_and_descriptions(client):
    """XRPC-13."""
    for number in range(5):
        await create(client, collection=STRANGE, rkey=str(number), record={})
    page = {"repo": "alice.test", "collection": STRANGE, "limit": 3}
    _status, first = await client.get("repo.listRecords", **page)
    _status, second = await client.get("repo.listRecords", **page, cursor=first["cursor"])
    keys = [item["uri"][-1] for item in first["records"] + second["records"]]
    assert keys == ["4", "3", "2", "1", "0"]
    assert "cursor" not in second
    _status, backwards = await client.get("repo.listRecords", **page, reverse="true")
    assert [item["uri"][-1] for item in backwards["records"]] == ["0", "1", "2"]
    for bad in ({"limit": 0}, {"limit": 101}, {"cursor": "a/b"}, {"reverse": "maybe"}):
        status, error = await client.get("repo.listRecords", **(page | bad))
        assert (status, error["error"]) == (400, "InvalidRequest")
    status, found = await client.get("repo.describeRepo", repo=ALICE)
    assert (status, found["handle"], found["did"]) == (200, "alice.test", ALICE)
    assert (found["collections"], found["handleIsCorrect"]) == ([STRANGE], True)
    assert found["didDoc"]["id"] == ALICE


async def test_records_of_other_hosts_are_not_found_here(client):
    place = {"collection": POST, "rkey": "3kaaaaaaaaaaa"}
    status, error = await client.get("repo.getRecord", repo=BOB, **place)
    assert (status, error["error"]) == (400, "RecordNotFound")
    assert error["message"] == f"Could not locate record: at://{BOB}/{POST}/3kaaaaaaaaaaa"
    status, error = await client.get("repo.getRecord", "junk", repo=BOB, **place)
    assert (status, error["error"]) == (400, "InvalidToken")
    status, error = await client.get("repo.listRecords", repo=BOB, collection=POST)
    assert (status, error["message"]) == (400, f"Could not find repo: {BOB}")
    for repo in (BOB, "bob.test"):
        status, error = await client.get("repo.describeRepo", repo=repo)
        assert (status, error["error"]) == (400, "RepoNotFound")
        assert error["message"] == f"Could not find repo for DID: {repo}"


# --- sync -------------------------------------------------------------------------------------


async def test_a_repo_is_streamed_and_verifies(client):
    """REPO-43, LEX-112."""
    status, made = await create(client)
    _status, latest = await client.get("sync.getLatestCommit", did=ALICE)
    assert latest == made["commit"]
    for method in ("sync.getRepo", "sync.getCheckout"):
        status, content = await client.get(method, did=ALICE)
        roots, blocks = read_car(content)
        assert (status, str(roots[0])) == (200, latest["cid"])
        assert len(list(verify_repo(roots[0], BlockMap(blocks), did=ALICE))) == len(blocks) == 3
    assert await client.get("sync.getHead", did=ALICE) == (200, {"root": latest["cid"]})
    _status, content = await client.get("sync.getRepo", did=ALICE, since=latest["rev"])
    assert len(read_car(content)[1]) == 1
    _status, content = await client.get("sync.getBlocks", did=ALICE, cids=made["cid"])
    assert read_car(content)[0] == ()
    rkey = made["uri"].rsplit("/", 1)[1]
    _status, content = await client.get("sync.getRecord", did=ALICE, collection=POST, rkey=rkey)
    assert made["cid"] in map(str, read_car(content)[1])


async def test_a_repo_is_described_by_its_headers(client):
    async with client.session.get(
        f"{client.url}/xrpc/com.atproto.sync.getRepo", params={"did": ALICE}
    ) as answer:
        assert answer.content_type == "application/vnd.ipld.car"
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    async with client.session.head(
        f"{client.url}/xrpc/com.atproto.sync.getRepo", params={"did": ALICE}
    ) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_status_and_list(client):
    """SYNC-71, SYNC-72."""
    _status, latest = await client.get("sync.getLatestCommit", did=ALICE)
    _status, found = await client.get("sync.getRepoStatus", did=ALICE)
    assert found == {"did": ALICE, "active": True, "rev": latest["rev"]}
    entry = {"did": ALICE, "head": latest["cid"], "rev": latest["rev"], "active": True}
    assert await client.get("sync.listRepos") == (200, {"repos": [entry]})
    await client.host.add_account(BOB, "bob.test")
    _status, page = await client.get("sync.listRepos", limit=1)
    assert (page["repos"], page["cursor"]) == ([entry], "1")
    await client.host.update_account(deactivated_at=1)
    _status, found = await client.get("sync.getRepoStatus", did=ALICE)
    assert found == {"did": ALICE, "active": False, "status": "deactivated"}
    _status, page = await client.get("sync.listRepos", limit=1)
    assert page["repos"] == [entry | {"active": False, "status": "deactivated"}]


async def test_repos_by_collection(client, monkeypatch):
    """Active accounts with a record in it; pages of few accounts, ended by no cursor (SYNC-73)."""
    await client.host.add_account(BOB, "bob.test")
    assert (await create(client))[0] == 200
    for repo in (ALICE, BOB):
        status, _made = await client.post(
            "createRecord", repo, repo=repo, collection=STRANGE, record={"n": 1}
        )
        assert status == 200
    by = "sync.listReposByCollection"
    alice, bob = {"did": ALICE}, {"did": BOB}
    assert await client.get(by, collection=POST) == (200, {"repos": [alice]})
    assert await client.get(by, collection=STRANGE) == (200, {"repos": [alice, bob]})
    assert await client.get(by, collection="com.example.unknow") == (200, {"repos": []})
    _status, page = await client.get(by, collection=STRANGE, limit=1)
    assert page == {"repos": [alice], "cursor": "1"}
    assert await client.get(by, collection=STRANGE, **page_after(page)) == (200, {"repos": [bob]})
    with monkeypatch.context() as few:
        few.setattr(hosting, "MAX_SCANNED", 1)
        _status, page = await client.get(by, collection=POST)
        assert page == {"repos": [alice], "cursor": "1"}
        assert await client.get(by, collection=POST, **page_after(page)) == (200, {"repos": []})
    status, error = await client.get(by, collection=POST, cursor="x")
    assert (status, error["error"]) == (400, "InvalidRequest")
    await client.host.update_account(deactivated_at=1)
    assert await client.get(by, collection=STRANGE) == (200, {"repos": [bob]})


def page_after(page: Any) -> dict[str, Any]:
    return {"cursor": page["cursor"], "limit": 1}


async def test_this_host_is_the_only_one_that_it_knows(client):
    """SYNC-60: the answers of a relay, about ourselves."""
    seq = client.host.engine.last_seq
    ours = {"hostname": "pds.test", "seq": seq, "accountCount": 1, "status": "active"}
    for name in ("pds.test", "PDS.test."):
        assert await client.get("sync.getHostStatus", hostname=name) == (200, ours)
    status, error = await client.get("sync.getHostStatus", hostname="other.test")
    assert (status, error["error"]) == (400, "HostNotFound")
    assert await client.get("sync.listHosts") == (200, {"hosts": [ours]})
    assert await client.get("sync.listHosts", cursor="x") == (200, {"hosts": []})


async def test_requests_to_crawl_are_accepted_and_do_nothing(client):
    """SYNC-60."""
    before = len(client.host.events)
    for method in ("requestCrawl", "notifyOfUpdate"):
        url = f"{client.url}/xrpc/com.atproto.sync.{method}"
        for body, status in (({"hostname": "other.test"}, 200), ({}, 400)):
            async with client.session.post(url, json=body) as answer:
                assert answer.status == status
    assert len(client.host.events) == before


async def test_hidden_repos_over_http(client):
    """SYNC-70, XRPC-21, LEX-113."""
    await client.host.update_account(takedown_ref="x")
    for method, params in (
        ("sync.getRepo", {}),
        ("sync.getLatestCommit", {}),
        ("sync.getRecord", {"collection": POST, "rkey": "a"}),
        ("sync.getBlocks", {"cids": str(Cid.of_data(b"x"))}),
        ("sync.getHead", {}),
        ("sync.getCheckout", {}),
    ):
        status, error = await client.get(method, did=ALICE, **params)
        assert (status, error["error"]) == (400, "RepoTakendown")
        status, error = await client.get(method, "junk", did=ALICE, **params)
        assert (status, error["error"]) == (400, "InvalidToken")
        status, error = await client.get(method, did=BOB, **params)
        assert (status, error["error"]) == (
            400,
            "HeadNotFound" if method == "sync.getHead" else "RepoNotFound",
        )
    assert (await client.get("sync.getRepo", ALICE, did=ALICE))[0] == 200
    status, error = await client.get("sync.getRepoStatus", did=BOB)
    assert (status, error["error"]) == (400, "RepoNotFound")
    status, error = await client.get("repo.listRecords", repo=ALICE, collection=POST)
    assert (status, error["error"]) == (400, "RepoTakendown")


async def test_missing_blocks_and_bad_parameters(client):
    """REPO-46."""
    missing = str(Cid.of_data(b"x"))
    status, error = await client.get("sync.getBlocks", did=ALICE, cids=missing)
    assert (status, error["error"]) == (400, "BlockNotFound")
    for method, params in (
        ("sync.getRepo", {"did": "x"}),
        ("sync.getRepo", {"did": ALICE, "since": "x"}),
        ("sync.getBlocks", {"did": ALICE, "cids": "x"}),
        ("sync.getRecord", {"did": ALICE, "collection": POST, "rkey": "a/b"}),
        ("sync.listRepos", {"cursor": "x"}),
        ("sync.listRepos", {"limit": "1001"}),
    ):
        status, error = await client.get(method, **params)
        assert (status, error["error"]) == (400, "InvalidRequest")


# --- blobs ------------------------------------------------------------------------------------


async def upload(client: Client, content: bytes, mime_type: str) -> Any:
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": mime_type}
    url = f"{client.url}/xrpc/com.atproto.repo.uploadBlob"
    async with client.session.post(url, data=io.BytesIO(content), headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return (await answer.json())["blob"]


async def fetch(client: Client, cid: str, **headers: str) -> tuple[int, bytes, Any]:
    async with client.session.get(
        f"{client.url}/xrpc/com.atproto.sync.getBlob",
        params={"did": ALICE, "cid": cid},
        headers=headers,
    ) as answer:
        return answer.status, await answer.read(), answer.headers


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_a_blob_from_upload_to_download(client, size):
    """XRPC-81, XRPC-82, XRPC-87."""
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    blob = await upload(client, content, "text/html")
    cid = blob["ref"]["$link"]
    assert (blob["$type"], blob["mimeType"], blob["size"]) == ("blob", "text/html", size)
    status, body, _headers = await fetch(client, cid)
    assert (status, json.loads(body)["error"]) == (400, "BlobNotFound")
    assert await client.get("sync.listBlobs", did=ALICE) == (200, {"cids": []})
    place = {"repo": ALICE, "collection": STRANGE, "rkey": "a"}
    assert (await client.post("putRecord", **place, record={"blob": blob}))[0] == 200
    status, body, headers = await fetch(client, cid)
    assert (status, body == content) == (200, True)
    assert headers["Content-Type"] == "text/html"
    assert headers["Content-Length"] == str(size)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Disposition"] == f'attachment; filename="{cid}"'
    assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert await client.get("sync.listBlobs", did=ALICE) == (200, {"cids": [cid]})
    assert await client.get("repo.listMissingBlobs", ALICE) == (200, {"blobs": []})
    for wanted, start, end in (
        ("bytes=2-4", 2, 5),
        ("bytes=7-", 7, size),
        ("bytes=-3", size - 3, size),
        (f"bytes=5-{size * 2}", 5, size),
    ):
        status, body, headers = await fetch(client, cid, Range=wanted)
        assert (status, body) == (206, content[start:end])
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for whole in ("bytes=0-", "bytes=-", "bytes=4-2", "bytes=0-1,3-4", "lines=1-2"):
        status, body, _headers = await fetch(client, cid, Range=whole)
        assert (status, len(body)) == (200, size)
    status, body, headers = await fetch(client, cid, Range=f"bytes={size}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    status, body, _headers = await fetch(client, cid, **{"If-None-Match": f'"{cid}"'})
    assert (status, body) == (304, b"")
    async with client.session.head(
        f"{client.url}/xrpc/com.atproto.sync.getBlob", params={"did": ALICE, "cid": cid}
    ) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(size))


async def test_hidden_and_foreign_blobs(client):
    """SYNC-70, XRPC-87."""
    await client.host.add_account(BOB, "bob.test")
    blob = await upload(client, b"one", "text/plain")
    cid = blob["ref"]["$link"]
    place = {"repo": ALICE, "collection": STRANGE, "rkey": "a"}
    await client.post("putRecord", **place, record={"blob": blob})
    status, error = await client.get("sync.getBlob", did=BOB, cid=cid)
    assert (status, error["error"]) == (400, "BlobNotFound")
    await client.host.update_account(deactivated_at=1)
    for method, params in (("sync.getBlob", {"cid": cid}), ("sync.listBlobs", {})):
        status, error = await client.get(method, did=ALICE, **params)
        assert (status, error["error"]) == (400, "RepoDeactivated")
        assert (await client.get(method, ALICE, did=ALICE, **params))[0] == 200
    for method, params in (
        ("sync.getBlob", {"did": ALICE, "cid": "x"}),
        ("sync.listBlobs", {"did": ALICE, "cursor": "x"}),
        ("sync.listBlobs", {"did": ALICE, "since": "x"}),
    ):
        status, error = await client.get(method, ALICE, **params)
        assert (status, error["error"]) == (400, "InvalidRequest")


async def test_an_upload_needs_a_credential(client):
    url = f"{client.url}/xrpc/com.atproto.repo.uploadBlob"
    async with client.session.post(url, data=b"x", headers={"Content-Type": "a/b"}) as answer:
        assert (answer.status, (await answer.json())["error"]) == (401, "AuthMissing")
