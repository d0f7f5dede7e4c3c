"""Records and blobs: written, read, listed, refused."""

from typing import Any, Final

from tests.interop.side_by_side import Pair

REPO = "com.atproto.repo"
POST = "app.bsky.feed.post"
NEVER = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
DATE = "2026-01-01T00:00:00.000Z"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cf"
    "c0f01f0005000201ff5d7d0d1d0000000049454e44ae426082"
)
NO_BLOB = "bafkreigicxwvav6t72kj2gdczzdhpzrljspk5bgzaknuhjxyn5smvbjdru"
VALUE = frozenset({"value"})


def post(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A post."""
    return {"$type": POST, "text": text, "createdAt": DATE, **more}


def creation(**more: Any) -> dict[str, Any]:
    """The body of a createRecord of alice's."""
    return {"repo": "{alice.did}", "collection": POST, "record": post(), **more}


GOOD: Final[dict[str, dict[str, Any]]] = {
    "by handle": {"repo": "alice.test"},
    "own key": {"rkey": "3kmine2222222"},
    "validation asked": {"validate": True},
    "validation off": {"validate": False},
    "unknown collection": {"collection": "com.example.note", "record": {"x": 1}},
    "reply": {
        "record": post(
            reply={side: {"uri": "{post.uri}", "cid": "{post.cid}"} for side in ("root", "parent")}
        )
    },
    "like": {
        "collection": "app.bsky.feed.like",
        "record": {"subject": {"uri": "{post.uri}", "cid": "{post.cid}"}, "createdAt": DATE},
    },
    "like again": {
        "collection": "app.bsky.feed.like",
        "record": {"subject": {"uri": "{post.uri}", "cid": "{post.cid}"}, "createdAt": DATE},
    },
    "follow": {
        "collection": "app.bsky.graph.follow",
        "record": {"subject": "{bob.did}", "createdAt": DATE},
    },
    "follow again": {
        "collection": "app.bsky.graph.follow",
        "record": {"subject": "{bob.did}", "createdAt": DATE},
    },
    "profile": {
        "collection": "app.bsky.actor.profile",
        "rkey": "self",
        "record": {"displayName": "Alice"},
    },
    "no type in the record": {"record": {"text": "hello", "createdAt": DATE}},
}
"""Creations that are taken: what each changes."""

BAD: Final[dict[str, dict[str, Any]]] = {
    "unknown repo": {"repo": NEVER},
    "another's repo": {"repo": "{bob.did}"},
    "repo without sense": {"repo": "nonsense"},
    "collection without sense": {"collection": "nonsense"},
    "key exists": {"rkey": "3kmine2222222"},
    "key with a slash": {"rkey": "a/b"},
    "key dot": {"rkey": "."},
    "key empty": {"rkey": ""},
    "key too long": {"rkey": "k" * 513},
    "profile under another key": {
        "collection": "app.bsky.actor.profile",
        "rkey": "other",
        "record": {},
    },
    "type of another collection": {"record": {**post(), "$type": "app.bsky.feed.like"}},
    "no text": {"record": {"$type": POST, "createdAt": DATE}},
    "text too long": {"record": post("x" * 3001)},
    "bad date": {"record": post(createdAt="yesterday")},
    "record no object": {"record": "text"},
    "record a list": {"record": [1]},
    "record null": {"record": None},
    "unknown collection, validation asked": {
        "collection": "com.example.note",
        "record": {"x": 1},
        "validate": True,
    },
    "bad link": {
        "collection": "com.example.note",
        "record": {"link": {"$link": "nonsense"}},
    },
    "bad bytes": {"collection": "com.example.note", "record": {"b": {"$bytes": "%%%"}}},
    "blob that is not here": {
        "record": post(
            embed={
                "$type": "app.bsky.embed.images",
                "images": [
                    {
                        "alt": "",
                        "image": {
                            "$type": "blob",
                            "ref": {"$link": NO_BLOB},
                            "mimeType": "image/png",
                            "size": 10,
                        },
                    }
                ],
            }
        )
    },
    "old form of a blob": {
        "record": post(
            embed={
                "$type": "app.bsky.embed.images",
                "images": [
                    {
                        "alt": "",
                        "image": {
                            "cid": NO_BLOB,
                            "mimeType": "image/png",
                        },
                    }
                ],
            }
        )
    },
    "swap of another commit": {"swapCommit": "{post.cid}"},
    "swap without sense": {"swapCommit": "nonsense"},
    "validate no boolean": {"validate": "yes"},
}
"""Creations that are refused: what each changes."""


async def create(pair: Pair) -> None:
    """createRecord, good and bad."""
    method = f"{REPO}.createRecord"
    save = {
        "post.uri": "uri",
        "post.cid": "cid",
        "post.rkey": lambda body: body["uri"].rpartition("/")[2],
    }
    await pair.post("create", method, creation(), auth="alice", save=save)
    for label, change in GOOD.items():
        await pair.post(f"create: {label}", method, creation(**change), auth="alice")
    for label, change in BAD.items():
        await pair.post(f"create: {label}", method, creation(**change), auth="alice")
    for missing in ("repo", "collection", "record"):
        body = {key: value for key, value in creation().items() if key != missing}
        await pair.post(f"create: no {missing}", method, body, auth="alice")
    await pair.post("create: nobody", method, creation())
    await pair.post("create: refresh token", method, creation(), auth="Bearer {alice.refresh}")
    await pair.post("create: with an app password", method, creation(), auth="priv")
    await pair.post(
        "create: record of a megabyte",
        method,
        creation(
            collection="com.example.note",
            record={"$type": "com.example.note", "text": "x" * 1_100_000},
        ),
        auth="alice",
    )


async def put_and_delete(pair: Pair) -> None:
    """putRecord and deleteRecord."""
    method = f"{REPO}.putRecord"
    body = creation(rkey="3kput22222222")
    await pair.post("put: new", method, body, auth="alice", save={"put.cid": "cid"})
    await pair.post("put: the same", method, body, auth="alice")
    for label, change in {
        "other text": {"record": post("other")},
        "swap of another record": {"swapRecord": "{post.cid}", "record": post("more")},
        "swap of nothing": {"swapRecord": None, "record": post("more")},
        "key without sense": {"rkey": "a/b"},
        "another's repo": {"repo": "{bob.did}"},
        "type of another collection": {"record": {**post(), "$type": "app.bsky.feed.like"}},
        "invalid record": {"record": {"$type": POST}},
        "unknown repo": {"repo": NEVER},
        "profile": {
            "collection": "app.bsky.actor.profile",
            "rkey": "self",
            "record": {"displayName": "Alice again"},
        },
    }.items():
        await pair.post(f"put: {label}", method, {**body, **change}, auth="alice")
    await pair.post("put: no key", method, creation(), auth="alice")
    await pair.post("put: nobody", method, body)
    method = f"{REPO}.deleteRecord"
    body = {"repo": "{alice.did}", "collection": POST, "rkey": "3kput22222222"}
    for label, change in {
        "swap of another record": {"swapRecord": "{post.cid}"},
        "swap of another commit": {"swapCommit": "{post.cid}"},
        "another's repo": {"repo": "{bob.did}"},
        "collection without sense": {"collection": "nonsense"},
        "key without sense": {"rkey": "a/b"},
        "good": {},
        "again": {},
    }.items():
        await pair.post(f"delete record: {label}", method, {**body, **change}, auth="alice")
    await pair.post("delete record: nobody", method, body)
    await pair.post(
        "delete record: no key", method, {"repo": "{alice.did}", "collection": POST}, auth="alice"
    )


async def apply(pair: Pair) -> None:
    """applyWrites."""
    method = f"{REPO}.applyWrites"
    create = {"$type": f"{method}#create", "collection": POST, "value": post()}
    update = {
        "$type": f"{method}#update",
        "collection": POST,
        "rkey": "3kwrite222222",
        "value": post("new"),
    }
    note = {**create, "collection": "com.example.note", "value": {"x": 1}}
    delete = {"$type": f"{method}#delete", "collection": POST, "rkey": "3kwrite222222"}
    for label, writes, more in (
        ("two creations", [create, {**create, "rkey": "3kwrite222222"}], {}),
        ("update and delete elsewhere", [update, {**delete, "rkey": "3kmine2222222"}], {}),
        ("update of what is not there", [{**update, "rkey": "none"}], {}),
        ("delete of what is not there", [{**delete, "rkey": "none"}], {}),
        ("creation of what is there", [{**create, "rkey": "3kwrite222222"}], {}),
        ("delete", [delete], {}),
        ("nothing", [], {}),
        ("201 writes", [create] * 201, {}),
        ("invalid record", [{**create, "value": {"$type": POST}}], {}),
        ("one bad among good", [create, {**create, "value": {"$type": POST}}], {}),
        ("unknown kind", [{**create, "$type": f"{method}#other"}], {}),
        ("no kind", [{"collection": POST, "value": post()}], {}),
        ("swap of another commit", [create], {"swapCommit": "{post.cid}"}),
        ("another's repo", [create], {"repo": "{bob.did}"}),
        ("validation asked of the unknown", [note], {"validate": True}),
        ("validation off", [{**create, "value": {"text": 5}}], {"validate": False}),
    ):  # fmt: skip
        body = {"repo": "{alice.did}", "writes": writes, **more}
        await pair.post(f"apply: {label}", method, body, auth="alice")
    await pair.post("apply: no writes", method, {"repo": "{alice.did}"}, auth="alice")
    await pair.post("apply: nobody", method, {"repo": "{alice.did}", "writes": [create]})


async def read(pair: Pair) -> None:
    """getRecord, listRecords, describeRepo."""
    record = {"repo": "{alice.did}", "collection": POST, "rkey": "{post.rkey}"}
    for label, change in {
        "good": {},
        "by handle": {"repo": "alice.test"},
        "this version": {"cid": "{post.cid}"},
        "another version": {"cid": "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"},
        "version without sense": {"cid": "nonsense"},
        "not there": {"rkey": "none"},
        "collection without sense": {"collection": "nonsense"},
        "key without sense": {"rkey": "a/b"},
        "repo without sense": {"repo": "nonsense"},
    }.items():
        await pair.get(
            f"get record: {label}", f"{REPO}.getRecord", {**record, **change}, opaque=VALUE
        )
    for missing in record:
        params = {key: value for key, value in record.items() if key != missing}
        await pair.get(f"get record: no {missing}", f"{REPO}.getRecord", params)
    base: dict[str, Any] = {"repo": "{alice.did}", "collection": POST}
    for label, more in {
        "all": {},
        "two": {"limit": 2},
        "from the other end": {"reverse": True},
        "by handle": {"repo": "alice.test"},
        "after": {"cursor": "{post.rkey}"},
        "empty collection": {"collection": "com.example.nothing"},
        "limit 0": {"limit": 0},
        "limit 101": {"limit": 101},
        "limit no number": {"limit": "many"},
        "collection without sense": {"collection": "nonsense"},
        "unknown repo": {"repo": NEVER},
        "unknown handle": {"repo": "nobody.test"},
        "repo without sense": {"repo": "nonsense"},
        "reverse no boolean": {"reverse": "maybe"},
    }.items():
        await pair.get(
            f"list records: {label}", f"{REPO}.listRecords", {**base, **more}, opaque=VALUE
        )
    await pair.get("list records: no collection", f"{REPO}.listRecords", {"repo": "{alice.did}"})
    for label, repo in {
        "DID": "{alice.did}",
        "handle": "alice.test",
        "unknown DID": NEVER,
        "unknown handle": "nobody.test",
        "nonsense": "nonsense",
    }.items():
        params = {"repo": repo}
        opaque = frozenset({"didDoc"})
        await pair.get(f"describe repo: {label}", f"{REPO}.describeRepo", params, opaque=opaque)
    await pair.get("describe repo: nothing", f"{REPO}.describeRepo")


async def blobs(pair: Pair) -> None:
    """uploadBlob, and records that refer to blobs."""
    upload = f"{REPO}.uploadBlob"
    await pair.post(
        "upload",
        upload,
        PNG,
        auth="alice",
        headers={"Content-Type": "image/png"},
        save={"blob": "blob", "blob.cid": lambda body: body["blob"]["ref"]["$link"]},
    )
    await pair.post(
        "upload: the same", upload, PNG, auth="alice", headers={"Content-Type": "image/png"}
    )
    await pair.post(
        "upload: other type said", upload, PNG, auth="alice", headers={"Content-Type": "text/plain"}
    )
    await pair.post(
        "upload: any type", upload, b"text" * 10, auth="alice", headers={"Content-Type": "*/*"}
    )
    await pair.post(
        "upload: nothing", upload, b"", auth="alice", headers={"Content-Type": "image/png"}
    )
    await pair.post("upload: nobody", upload, PNG)
    await pair.post("upload: too large", upload, b"x" * 110_000, auth="alice")
    await pair.request("upload: no body", upload, verb="POST", auth="alice")
    image = {"alt": "", "image": "{blob}"}
    embed = {"$type": "app.bsky.embed.images", "images": [image]}
    body = creation(rkey="3kimage222222", record=post(embed=embed))
    await pair.post("create: with a blob", f"{REPO}.createRecord", body, auth="alice")
    wrong = {
        "$type": "blob",
        "ref": {"$link": "{blob.cid}"},
        "mimeType": "image/jpeg",
        "size": len(PNG),
    }
    body = creation(record=post(embed={**embed, "images": [{**image, "image": wrong}]}))
    await pair.post(
        "create: with a blob of another type", f"{REPO}.createRecord", body, auth="alice"
    )
    missing = f"{REPO}.listMissingBlobs"
    await pair.get("missing blobs", missing, auth="alice")
    await pair.get("missing blobs: nobody", missing)
    await pair.get("missing blobs: limit 0", missing, {"limit": 0}, auth="alice")
    blob = {"did": "{alice.did}", "cid": "{blob.cid}"}
    await pair.get("get blob", "com.atproto.sync.getBlob", blob)
    unknown = NO_BLOB
    await pair.get("get blob: not there", "com.atproto.sync.getBlob", {**blob, "cid": unknown})
    await pair.get("get blob: cid without sense", "com.atproto.sync.getBlob", {**blob, "cid": "x"})
    await pair.get("get blob: unknown repo", "com.atproto.sync.getBlob", {**blob, "did": NEVER})
    await pair.get("list blobs", "com.atproto.sync.listBlobs", {"did": "{alice.did}"})
    await pair.get(
        "list blobs: since",
        "com.atproto.sync.listBlobs",
        {"did": "{alice.did}", "since": "3aaaaaaaaaaaa"},
    )
    await pair.get(
        "list blobs: limit 0", "com.atproto.sync.listBlobs", {"did": "{alice.did}", "limit": 0}
    )
    await pair.get(
        "list blobs: limit 1001",
        "com.atproto.sync.listBlobs",
        {"did": "{alice.did}", "limit": 1001},
    )
