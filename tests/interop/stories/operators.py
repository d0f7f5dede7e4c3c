"""Operators and moderators."""

from typing import Any

from tests.interop.side_by_side import Pair

ADMIN = "com.atproto.admin"
NEVER = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


async def accounts(pair: Pair) -> None:
    """Look at accounts and change them."""
    info, infos = f"{ADMIN}.getAccountInfo", f"{ADMIN}.getAccountInfos"
    opaque = frozenset({"invites", "invitedBy"})
    await pair.get("info", info, {"did": "{alice.did}"}, auth="admin", opaque=opaque)
    await pair.get("info: invited", info, {"did": "{fred.did}"}, auth="admin", opaque=opaque)
    await pair.get("info: unknown", info, {"did": NEVER}, auth="admin")
    await pair.get("info: nobody", info, {"did": "{alice.did}"})
    await pair.get("info: session", info, {"did": "{alice.did}"}, auth="alice")
    await pair.get("info: nothing", info, auth="admin")
    both = {"dids": ["{alice.did}", "{bob.did}", NEVER]}
    await pair.get("infos", infos, both, auth="admin", opaque=opaque)
    await pair.get("infos: nobody", infos, both)
    for act in ("disableAccountInvites", "enableAccountInvites"):
        body: dict[str, Any] = {"account": "{bob.did}", "note": "why"}
        await pair.post(act, f"{ADMIN}.{act}", body, auth="admin")
        await pair.post(f"{act}: nobody", f"{ADMIN}.{act}", body)
        await pair.post(f"{act}: unknown", f"{ADMIN}.{act}", {"account": NEVER}, auth="admin")
        await pair.get(f"{act}: seen", info, {"did": "{bob.did}"}, auth="admin", opaque=opaque)
    handle = f"{ADMIN}.updateAccountHandle"
    body = {"did": "{fred.did}", "handle": "freddy.test"}
    await pair.post("admin handle", handle, body, auth="admin")
    await pair.post(
        "admin handle: reserved", handle, {**body, "handle": "admin.test"}, auth="admin"
    )
    await pair.post("admin handle: taken", handle, {**body, "handle": "bob.test"}, auth="admin")
    await pair.post("admin handle: unknown", handle, {**body, "did": NEVER}, auth="admin")
    await pair.post("admin handle: session", handle, body, auth="alice")
    email = f"{ADMIN}.updateAccountEmail"
    body = {"account": "{fred.did}", "email": "freddy@example.com"}
    await pair.post("admin email", email, body, auth="admin")
    by_handle = {**body, "account": "bob.test", "email": "bobby@example.com"}
    await pair.post("admin email: by handle", email, by_handle, auth="admin")
    await pair.post("admin email: unknown", email, {**body, "account": NEVER}, auth="admin")
    await pair.post("admin email: nobody", email, body)
    word = f"{ADMIN}.updateAccountPassword"
    body = {"did": "{fred.did}", "password": "freddy words"}
    await pair.post("admin password", word, body, auth="admin")
    await pair.post("admin password: unknown", word, {**body, "did": NEVER}, auth="admin")
    await pair.post("admin password: nobody", word, body)
    for label, text in {"old": "fred password", "new": "freddy words"}.items():
        await pair.post(
            f"sign in fred, {label} password",
            "com.atproto.server.createSession",
            {"identifier": "{fred.did}", "password": text},
        )
    send = f"{ADMIN}.sendEmail"
    body = {
        "recipientDid": "{alice.did}",
        "senderDid": "{bob.did}",
        "subject": "Hello",
        "content": "A word.",
    }
    await pair.post("admin mail", send, body, auth="admin")
    await pair.post("admin mail: unknown", send, {**body, "recipientDid": NEVER}, auth="admin")
    await pair.post("admin mail: nobody", send, body)


async def takedowns(pair: Pair) -> None:
    """Take down a record, a blob and a repo, and take it back."""
    get, update = f"{ADMIN}.getSubjectStatus", f"{ADMIN}.updateSubjectStatus"
    repo = {"$type": "com.atproto.admin.defs#repoRef", "did": "{bob.did}"}
    record = {
        "$type": "com.atproto.repo.strongRef",
        "uri": "at://{alice.did}/app.bsky.feed.post/3kimage222222",
        "cid": "{post.cid}",
    }
    blob = {
        "$type": "com.atproto.admin.defs#repoBlobRef",
        "did": "{alice.did}",
        "cid": "{blob.cid}",
    }
    image = {"repo": "{alice.did}", "collection": "app.bsky.feed.post", "rkey": "3kimage222222"}
    bytes_of = {"did": "{alice.did}", "cid": "{blob.cid}"}
    await pair.get("subject: repo", get, {"did": "{bob.did}"}, auth="admin")
    await pair.get("subject: record", get, {"uri": record["uri"]}, auth="admin")
    await pair.get("subject: blob", get, {"did": "{alice.did}", "blob": "{blob.cid}"}, auth="admin")
    await pair.get("subject: nothing", get, auth="admin")
    await pair.get("subject: unknown", get, {"did": NEVER}, auth="admin")
    await pair.get("subject: nobody", get, {"did": "{bob.did}"})
    for name, subject in {"repo": repo, "record": record, "blob": blob}.items():
        for label, takedown in (
            ("down", {"applied": True, "ref": "because"}),
            ("down again", {"applied": True, "ref": "because"}),
            ("up", {"applied": False}),
            ("up again", {"applied": False}),
        ):
            body = {"subject": subject, "takedown": takedown}
            await pair.post(f"{name} {label}", update, body, auth="admin")
            if label == "down":
                await look(pair, name, image, bytes_of)
            if label == "up":
                await pair.get(
                    f"get record: {name} up",
                    "com.atproto.repo.getRecord",
                    image,
                    opaque=frozenset({"value"}),
                )
                await pair.get(f"get blob: {name} up", "com.atproto.sync.getBlob", bytes_of)
                await pair.get(
                    f"repo status: {name} up",
                    "com.atproto.sync.getRepoStatus",
                    {"did": "{bob.did}"},
                )
    body = {"subject": repo, "takedown": {"applied": True}}
    await pair.post("takedown: nobody", update, body)
    await pair.post("takedown: session", update, body, auth="alice")
    unknown = {"subject": {**repo, "did": NEVER}, "takedown": {"applied": True}}
    await pair.post("takedown: unknown", update, unknown, auth="admin")
    await pair.post("takedown: no subject", update, {"takedown": {"applied": True}}, auth="admin")
    off = {"subject": repo, "deactivated": {"applied": True}}
    await pair.post("deactivation by the operator", update, off, auth="admin")
    await pair.get(
        "repo status: switched off", "com.atproto.sync.getRepoStatus", {"did": "{bob.did}"}
    )
    on = {"subject": repo, "deactivated": {"applied": False}}
    await pair.post("activation by the operator", update, on, auth="admin")
    await pair.post(
        "takedown and activation", update, {**body, "deactivated": {"applied": False}}, auth="admin"
    )
    gone = f"{ADMIN}.deleteAccount"
    await pair.post("admin deletion: nobody", gone, {"did": "{fred.did}"})
    await pair.post("admin deletion", gone, {"did": "{fred.did}"}, auth="admin")
    await pair.post("admin deletion: again", gone, {"did": "{fred.did}"}, auth="admin")


async def look(pair: Pair, name: str, image: dict[str, str], bytes_of: dict[str, str]) -> None:
    """What is seen of what was taken down."""
    await pair.get(
        f"subject: {name} down",
        f"{ADMIN}.getSubjectStatus",
        {"uri": f"at://{{alice.did}}/{image['collection']}/3kimage222222"},
        auth="admin",
    )
    await pair.get(
        f"get record: {name} down", "com.atproto.repo.getRecord", image, opaque=frozenset({"value"})
    )
    await pair.get(
        f"list records: {name} down",
        "com.atproto.repo.listRecords",
        {key: image[key] for key in ("repo", "collection")},
        opaque=frozenset({"value"}),
    )
    await pair.get(f"get blob: {name} down", "com.atproto.sync.getBlob", bytes_of)
    for method in ("getRepoStatus", "getLatestCommit", "getRepo", "listBlobs"):
        params = {"did": "{bob.did}"}
        await pair.get(f"{method}: {name} down", f"com.atproto.sync.{method}", params)
        await pair.get(
            f"{method}: {name} down, operator", f"com.atproto.sync.{method}", params, auth="admin"
        )
    if name != "repo":
        return
    await pair.get("session: down", "com.atproto.server.getSession", auth="bob")
    await pair.post(
        "refresh: down", "com.atproto.server.refreshSession", auth="Bearer {bob.refresh}"
    )
    for label, more in {"": {}, ", allowed": {"allowTakendown": True}}.items():
        save = {"bob.access": "accessJwt", "bob.refresh": "refreshJwt"} if more else None
        body = {"identifier": "{bob.did}", "password": "bob2 words", **more}
        await pair.post(
            f"sign in: down{label}", "com.atproto.server.createSession", body, save=save
        )
    await pair.get("session: narrow", "com.atproto.server.getSession", auth="bob")
    await pair.get("status: narrow", "com.atproto.server.checkAccountStatus", auth="bob")
    await pair.get("getRepo: narrow", "com.atproto.sync.getRepo", {"did": "{bob.did}"}, auth="bob")
    await pair.post("deactivate: narrow", "com.atproto.server.deactivateAccount", {}, auth="bob")
    await pair.post(
        "create: narrow",
        "com.atproto.repo.createRecord",
        {"repo": "{bob.did}", "collection": "com.example.note", "record": {}},
        auth="bob",
    )
    for method in ("createAccount", "getSession"):
        await pair.get(
            f"service token: narrow, {method}",
            "com.atproto.server.getServiceAuth",
            {"aud": "did:web:elsewhere.example.com", "lxm": f"com.atproto.server.{method}"},
            auth="bob",
        )
