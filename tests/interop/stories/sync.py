"""What relays and mirrors ask."""

from tests.interop.side_by_side import Pair

SYNC = "com.atproto.sync"
NEVER = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


async def repos(pair: Pair) -> None:
    """Heads, exports, proofs, blocks, lists."""
    commit = {"commit.cid": "cid", "commit.rev": "rev"}
    await pair.get("latest commit", f"{SYNC}.getLatestCommit", {"did": "{alice.did}"}, save=commit)
    methods = ("getLatestCommit", "getRepo", "getRepoStatus", "getHead", "getCheckout", "listBlobs")
    for method in methods:
        await pair.get(f"{method}: good", f"{SYNC}.{method}", {"did": "{alice.did}"})
        await pair.get(f"{method}: unknown DID", f"{SYNC}.{method}", {"did": NEVER})
        await pair.get(f"{method}: handle", f"{SYNC}.{method}", {"did": "alice.test"})
        await pair.get(f"{method}: nothing", f"{SYNC}.{method}")
        await pair.get(
            f"{method}: bad token", f"{SYNC}.{method}", {"did": "{alice.did}"}, auth="Bearer x"
        )
    repo = f"{SYNC}.getRepo"
    await pair.get("getRepo: since", repo, {"did": "{alice.did}", "since": "3aaaaaaaaaaaa"})
    await pair.get("getRepo: since head", repo, {"did": "{alice.did}", "since": "{commit.rev}"})
    await pair.get("getRepo: since nonsense", repo, {"did": "{alice.did}", "since": "nonsense!"})
    proof = {"did": "{alice.did}", "collection": "app.bsky.feed.post", "rkey": "{post.rkey}"}
    for label, change in {
        "good": {},
        "absent": {"rkey": "none"},
        "unknown DID": {"did": NEVER},
        "collection without sense": {"collection": "nonsense"},
        "key without sense": {"rkey": "a/b"},
        "with commit": {"commit": "{commit.cid}"},
    }.items():
        await pair.get(f"proof: {label}", f"{SYNC}.getRecord", {**proof, **change})
    blocks = f"{SYNC}.getBlocks"
    head = {"did": "{alice.did}", "cids": ["{commit.cid}"]}
    unknown = "bafyreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
    await pair.get("blocks", blocks, head)
    await pair.get("blocks: two", blocks, {**head, "cids": ["{commit.cid}", "{post.cid}"]})
    await pair.get("blocks: not there", blocks, {**head, "cids": [unknown]})
    await pair.get("blocks: without sense", blocks, {**head, "cids": ["nonsense"]})
    await pair.get("blocks: none", blocks, {"did": "{alice.did}"})
    await pair.get("blocks: unknown DID", blocks, {**head, "did": NEVER})
    await pair.get("list repos", f"{SYNC}.listRepos")
    two = {"repos.cursor": "cursor"}
    await pair.get("list repos: two", f"{SYNC}.listRepos", {"limit": 2}, save=two)
    await pair.get(
        "list repos: next", f"{SYNC}.listRepos", {"limit": 2, "cursor": "{repos.cursor}"}
    )
    await pair.get("list repos: limit 0", f"{SYNC}.listRepos", {"limit": 0})
    await pair.get("list repos: limit 1001", f"{SYNC}.listRepos", {"limit": 1001})
    await pair.get("list repos: bad cursor", f"{SYNC}.listRepos", {"cursor": "nonsense"})


async def identity(pair: Pair) -> None:
    """Handles, and operations on DIDs."""
    ident = "com.atproto.identity"
    for label, handle in {
        "own": "alice.test",
        "own in upper case": "ALICE.test",
        "unknown own": "nobody.test",
        "nonsense": "nonsense",
        "empty": "",
    }.items():
        await pair.get(f"resolve handle: {label}", f"{ident}.resolveHandle", {"handle": handle})
    await pair.get("resolve handle: nothing", f"{ident}.resolveHandle")
    change = f"{ident}.updateHandle"
    for label, handle in {
        "free": "alicia.test",
        "the same": "alicia.test",
        "taken": "bob.test",
        "reserved": "admin.test",
        "too short": "al.test",
        "two labels": "al.icia.test",
        "nonsense": "nonsense",
        "does not resolve": "alice.invalid.example.com",
        "back": "alice.test",
    }.items():
        await pair.post(f"handle: {label}", change, {"handle": handle}, auth="alice")
    await pair.post("handle: nobody", change, {"handle": "alicia.test"})
    await pair.post("handle: nothing", change, {}, auth="alice")
    await pair.get("session: after the change", "com.atproto.server.getSession", auth="alice")
    credentials = f"{ident}.getRecommendedDidCredentials"
    await pair.get("credentials", credentials, auth="alice")
    await pair.get("credentials: nobody", credentials)
    ask, sign, submit = (
        f"{ident}.{method}"
        for method in ("requestPlcOperationSignature", "signPlcOperation", "submitPlcOperation")
    )
    await pair.post("plc: sign without code", sign, {}, auth="alice")
    await pair.post("plc: ask: nobody", ask)
    await pair.post("plc: ask: app password", ask, auth="priv")
    await pair.post("plc: ask", ask, auth="alice")
    await pair.set_code("code", "alice@example.com", "sync 1")
    await pair.post("plc: sign: wrong code", sign, {"token": "AAAAA-AAAAA"}, auth="alice")
    await pair.post("plc: sign: nobody", sign, {"token": "{code}"})
    await pair.post(
        "plc: sign",
        sign,
        {"token": "{code}", "alsoKnownAs": ["at://alice.test", "https://alice.example.com"]},
        auth="alice",
        save={"operation": "operation"},
    )
    await pair.post("plc: sign: code used", sign, {"token": "{code}"}, auth="alice")
    await pair.post("plc: submit: nobody", submit, {"operation": "{operation}"})
    await pair.post("plc: submit: nothing", submit, {}, auth="alice")
    await pair.post("plc: submit: empty", submit, {"operation": {}}, auth="alice")
    for label, field, value in (
        ("without our key", "rotationKeys", []),
        ("other handle", "alsoKnownAs", ["at://other.test"]),
        ("no services", "services", {}),
        ("no signing key", "verificationMethods", {}),
    ):
        for side in pair.sides:
            operation = side.names["operation"]
            side.names["changed"] = {
                **(operation if isinstance(operation, dict) else {}),
                field: value,
            }
        await pair.post(f"plc: submit: {label}", submit, {"operation": "{changed}"}, auth="alice")
    await pair.post("plc: submit", submit, {"operation": "{operation}"}, auth="alice")
