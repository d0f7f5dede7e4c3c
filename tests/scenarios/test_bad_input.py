"""Bad input over HTTP gets the documented error and changes nothing.

Each case is one request to a real server process. After every case the account's head, its record
list and its blob list are what they were, and the server still answers.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.independent import check_export
from tests.support_live import LiveServer, live_server_in

POST = "app.bsky.feed.post"
FOREIGN_CID = "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum"
FOREIGN_BLOB = "bafkreiftrdw3dgnrd44ohliul7daotoccfan2b4kqjze2tuqsb7llojjaq"
STALE_JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
    for part in ({"typ": "at+jwt", "alg": "none"}, {"sub": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"})
)


@dataclass(frozen=True)
class Case:
    """One bad request and the answer that is documented for it."""

    name: str
    method: str
    status: int
    error: str
    body: bytes | None = None
    content_type: str | None = "application/json"
    token: str | None = "session"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def write(record: Any, *, collection: str = POST, **more: Any) -> Callable[[str], bytes]:
    """Return a maker of createRecord bodies for the account's DID."""

    def make(did: str) -> bytes:
        body = {"repo": did, "collection": collection, "record": record, **more}
        return json.dumps(body).encode()

    return make


def note(record: Any, *, validate: bool | None = False) -> Callable[[str], bytes]:
    """Return a maker of bodies for a type without a known schema."""
    return write(record, collection="com.example.note", validate=validate)


def post(**more: Any) -> dict[str, Any]:
    """Return a valid post, changed by `more`."""
    return {"$type": POST, "text": "hi", "createdAt": "2026-01-01T00:00:00Z", **more}


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def image(ref: str, mime: str = "image/png", size: int = 10) -> dict[str, Any]:
    return {
        "$type": "app.bsky.embed.images",
        "images": [
            {
                "alt": "",
                "image": {
                    "$type": "blob",
                    "ref": {"$link": ref},
                    "mimeType": mime,
                    "size": size,
                },
            }
        ],
    }


def record_cases(did: str, other_did: str, blob: dict[str, Any]) -> Iterator[Case]:
    """Yield writes of records that must be refused (DM-1..DM-43, LEX-60..LEX-63)."""
    create = "com.atproto.repo.createRecord"
    ref = blob["ref"]["$link"]
    bad: list[tuple[str, str, Callable[[str], bytes]]] = [
        ("a float", "InvalidRequest", note({"n": 1.5}, validate=None)),
        ("a float, not validated", "InvalidRequest", note({"n": 1.5})),
        (
            "an integer beyond 64 bits",
            "InvalidRequest",
            lambda d: note({"n": 1})(d).replace(b'"n": 1', b'"n": ' + b"9" * 30),
        ),
        ("nesting of 40", "InvalidRequest", note({"x": nested(40)})),
        ("a link that is none", "InvalidRequest", note({"x": {"$link": "."}})),
        (
            "a link with extra keys",
            "InvalidRequest",
            note({"x": {"$link": FOREIGN_CID, "y": 1}}),
        ),
        ("bytes that are none", "InvalidRequest", note({"x": {"$bytes": [1]}})),
        ("an empty $type", "InvalidRequest", note({"x": {"$type": ""}})),
        ("a record that is a list", "InvalidRequest", write([1])),
        ("a record that is a string", "InvalidRequest", write("text")),
        ("another $type", "InvalidRequest", write({"$type": "com.example.y"})),
        ("a missing field", "InvalidRequest", write({"$type": POST, "text": "no date"})),
        ("a wrong type", "InvalidRequest", write(post(text=5))),
        ("a bad date", "InvalidRequest", write(post(createdAt="yesterday"))),
        ("a text too long", "InvalidRequest", write(post(text="x" * 3001))),
        ("301 graphemes", "InvalidRequest", write(post(text="é" * 301))),
        ("an unknown blob", "BlobNotFound", write(post(embed=image(FOREIGN_BLOB, size=68)))),
        (
            "a blob with a lying type",
            "InvalidMimeType",
            write(post(embed=image(ref, "image/jpeg", blob["size"]))),
        ),
        ("a blob with a lying size", "InvalidSize", write(post(embed=image(ref, size=9999)))),
        (
            "a blob of a type the schema refuses",
            "InvalidRequest",
            write(post(embed=image(ref, "text/html", blob["size"]))),
        ),
        (
            "a legacy blob",
            "InvalidRequest",
            note({"x": {"cid": ref, "mimeType": "image/png"}}),
        ),
        ("a bad rkey", "InvalidRequest", write(post(), rkey="a/b")),
        ("the rkey ..", "InvalidRequest", write(post(), rkey="..")),
        ("an rkey of the wrong kind", "InvalidRequest", write(post(), rkey="not-a-tid")),
        ("an unknown type, validated", "InvalidRequest", note({"x": 1}, validate=True)),
        ("a foreign swapCommit", "InvalidSwap", write(post(), swapCommit=FOREIGN_CID)),
        ("a swapCommit that is none", "InvalidRequest", write(post(), swapCommit="abc")),
        (
            "a collection that is none",
            "InvalidRequest",
            write({}, collection="x"),
        ),
    ]
    for name, error, make in bad:
        body = make(did)
        yield Case(name, create, 400, error, body)
    foreign = json.dumps(
        {"repo": "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", "collection": POST, "record": post()}
    ).encode()
    yield Case("a repo that is not here", create, 403, "AccountNotFound", foreign)


def body_cases(did: str) -> Iterator[Case]:
    """Yield bodies that are broken before their meaning is looked at (XRPC-4, XRPC-5, DM-24)."""
    create = "com.atproto.repo.createRecord"
    good = write(post())(did)
    yield Case("malformed JSON", create, 400, "InvalidRequest", good[:-2])
    yield Case("an empty body", create, 400, "InvalidRequest", b"")
    yield Case("JSON that is a list", create, 400, "InvalidRequest", b"[]")
    yield Case("NaN", create, 400, "InvalidRequest", good.replace(b'"hi"', b"NaN"))
    yield Case("bad UTF-8", create, 400, "InvalidRequest", good.replace(b"hi", b"\xff\xfe"))
    yield Case("a lone surrogate", create, 400, "InvalidRequest", good.replace(b"hi", rb"\ud800"))
    yield Case("10,000 brackets", create, 400, "InvalidRequest", b"[" * 10_000)
    twice = good.replace(b'"text"', b'"text": "a", "text"')
    yield Case("a key twice", create, 400, "InvalidRequest", twice)
    yield Case("no content type", create, 400, "InvalidRequest", good, content_type=None)
    yield Case("a wrong content type", create, 400, "InvalidRequest", good, "text/plain")
    yield Case("a body too large", create, 413, "PayloadTooLarge", b" " * 1_100_000 + good)
    coding = (("Content-Encoding", "zstd-of-mine"),)
    yield Case("an unknown coding", create, 415, "UnsupportedMediaType", good, headers=coding)
    coding = (("Content-Encoding", "gzip"),)
    yield Case("a lying coding", create, 400, "InvalidRequest", good, headers=coding)


def token_cases(did: str, refresh: str) -> Iterator[Case]:
    """Yield credentials that must be refused (XRPC-20..XRPC-24)."""
    create = "com.atproto.repo.createRecord"
    good = write(post())(did)
    yield Case("no credential", create, 401, "AuthMissing", good, token=None)
    yield Case("a credential of nothing", create, 400, "InvalidToken", good, token="x")
    yield Case("an unsigned token", create, 400, "InvalidToken", good, token=STALE_JWT + ".")
    yield Case("a refresh token", create, 400, "InvalidToken", good, token=refresh)
    scheme = (("Authorization", "Mystery abc"),)
    yield Case("a strange scheme", create, 400, "InvalidToken", good, token=None, headers=scheme)
    wrong = "Basic " + base64.b64encode(b"admin:wrong").decode()
    yield Case(
        "a wrong admin password",
        "com.atproto.server.createInviteCode",
        401,
        "AuthenticationRequired",
        b'{"useCount": 1}',
        token=None,
        headers=(("Authorization", wrong),),
    )
    yield Case(
        "a blob without credential",
        "com.atproto.repo.uploadBlob",
        401,
        "AuthMissing",
        b"x",
        token=None,
    )


def query_cases(did: str) -> Iterator[Case]:
    """Yield bad parameters, cursors and paths (XRPC-1..XRPC-3, XRPC-13, SYNC-70, SYNC-73)."""
    listing = "com.atproto.repo.listRecords"
    of = f"?repo={did}&collection={POST}"
    none: dict[str, Any] = {"content_type": None, "token": None}
    yield Case("limit 0", listing, 400, "InvalidRequest", query=of + "&limit=0", **none)
    yield Case("limit x", listing, 400, "InvalidRequest", query=of + "&limit=x", **none)
    yield Case("limit twice", listing, 400, "InvalidRequest", query=of + "&limit=1&limit=2", **none)
    yield Case("reverse=maybe", listing, 400, "InvalidRequest", query=of + "&reverse=maybe", **none)
    yield Case("a missing parameter", listing, 400, "InvalidRequest", query=f"?repo={did}", **none)
    bad_cursor = of + "&cursor=a/b%20c"
    yield Case("a bad record cursor", listing, 400, "InvalidRequest", query=bad_cursor, **none)
    for method in ("listRepos", "listBlobs"):
        query = f"?did={did}&cursor=%00nonsense!"
        name = f"a bad cursor of {method}"
        yield Case(name, f"com.atproto.sync.{method}", 400, "InvalidRequest", query=query, **none)
    unknown = "?did=did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
    for method in ("getRepo", "getLatestCommit", "getRepoStatus", "listBlobs"):
        name = f"{method} of an unknown account"
        yield Case(name, f"com.atproto.sync.{method}", 400, "RepoNotFound", query=unknown, **none)
    foreign = f"?did={did}&cid={FOREIGN_BLOB}"
    yield Case(
        "a foreign blob", "com.atproto.sync.getBlob", 400, "BlobNotFound", query=foreign, **none
    )
    bad = f"?did={did}&cid=zzz"
    yield Case(
        "a blob CID that is none",
        "com.atproto.sync.getBlob",
        400,
        "InvalidRequest",
        query=bad,
        **none,
    )
    blocks = f"?did={did}&cids={FOREIGN_CID}"
    yield Case(
        "foreign blocks", "com.atproto.sync.getBlocks", 400, "BlockNotFound", query=blocks, **none
    )
    yield Case(
        "a DID that is none",
        "com.atproto.sync.getRepo",
        400,
        "InvalidRequest",
        query="?did=me",
        **none,
    )
    since = f"?did={did}&since=never"
    yield Case(
        "a since that is none",
        "com.atproto.sync.getRepo",
        400,
        "InvalidRequest",
        query=since,
        **none,
    )
    stream = "com.atproto.sync.subscribeRepos"
    yield Case("a stream without upgrade", stream, 426, "InvalidRequest", **none)
    yield Case(
        "an unknown method",
        "com.atproto.repo.nothing",
        501,
        "MethodNotImplemented",
        token="session",
        content_type=None,
    )
    yield Case("a path of nothing", "com..x", 400, "InvalidRequest", **none)
    yield Case("a wrong verb", "com.atproto.repo.createRecord", 400, "InvalidRequest", **none)


async def sign_up(session: aiohttp.ClientSession, server: LiveServer, name: str) -> Any:
    body = {"handle": f"{name}.test", "email": f"{name}@example.com", "password": "bad input 1"}
    url = f"{server.url}/xrpc/com.atproto.server.createAccount"
    async with session.post(url, json=body) as answer:
        return await answer.json()


async def snapshot(session: aiohttp.ClientSession, server: LiveServer, did: str) -> list[Any]:
    """Return everything that a bad request could have changed."""
    found = []
    for path in (
        f"com.atproto.sync.getLatestCommit?did={did}",
        f"com.atproto.sync.listBlobs?did={did}",
        "com.atproto.sync.listRepos",
    ):
        async with session.get(f"{server.url}/xrpc/{path}") as answer:
            assert answer.status == 200, await answer.text()
            found.append(await answer.json())
    return found


async def ask(session: aiohttp.ClientSession, server: LiveServer, case: Case, token: str) -> str:
    """Send one case and return what is wrong with the answer, or an empty text."""
    headers = dict(case.headers)
    if case.token is not None:
        headers["Authorization"] = f"Bearer {token if case.token == 'session' else case.token}"
    if case.content_type:
        headers["Content-Type"] = case.content_type
    verb = "GET" if case.body is None else "POST"
    skip = ["Content-Type"] if case.content_type is None else []
    url = f"{server.url}/xrpc/{case.method}{case.query}"
    async with session.request(
        verb, url, data=case.body and io.BytesIO(case.body), headers=headers, skip_auto_headers=skip
    ) as answer:
        text = await answer.text(errors="replace")
        try:
            body = json.loads(text)
        except ValueError:
            return f"{case.name}: {answer.status} without a JSON body: {text[:100]!r}"
    if (answer.status, body.get("error")) != (case.status, case.error):
        return f"{case.name}: {answer.status} {text[:160]}, wanted {case.status} {case.error}"
    if not isinstance(body.get("message"), str) or "Traceback" in text:
        return f"{case.name}: no message that a person could read: {text[:160]}"
    return ""


async def test_bad_input_gets_its_error_and_changes_nothing(tmp_path: Path) -> None:
    async with live_server_in(tmp_path / "server") as server, aiohttp.ClientSession() as session:
        account, other = [await sign_up(session, server, name) for name in ("bad", "other")]
        did, token = account["did"], account["accessJwt"]
        picture = b"\x89PNG\r\n\x1a\n" + bytes(60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}
        url = f"{server.url}/xrpc/com.atproto.repo.uploadBlob"
        async with session.post(url, data=picture, headers=headers) as answer:
            blob = (await answer.json())["blob"]

        before = await snapshot(session, server, did)
        cases = [
            *record_cases(did, other["did"], blob),
            *body_cases(did),
            *token_cases(did, account["refreshJwt"]),
            *query_cases(did),
        ]
        wrong = []
        for case in cases:
            fault = await ask(session, server, case, token)
            if not fault and await snapshot(session, server, did) != before:
                fault = f"{case.name}: changed something"
            if fault:
                wrong.append(fault)
        assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
        car = await server.export(did)
        assert check_export(car, did=did, did_key=await server.signing_key(did)) == {}
        assert "Traceback" not in (server.folder / "server.log").read_text()
