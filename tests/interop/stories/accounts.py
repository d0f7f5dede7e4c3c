"""Sign-up, sessions, app passwords, service tokens, mail codes, deactivation, deletion."""

import time

from tests.interop.side_by_side import Pair

SERVER = "com.atproto.server"
NEVER = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"


async def sign_up(pair: Pair) -> None:
    """Open accounts, and try to open what must be refused."""
    await pair.get("describe server", f"{SERVER}.describeServer")
    for name in ("alice", "bob", "carol", "dave", "erin"):
        await pair.sign_up(name)
    good = {"handle": "novel.test", "email": "new@example.com", "password": "new password"}
    for label, change in {
        "handle taken": {"handle": "alice.test"},
        "handle taken in upper case": {"handle": "ALICE.test"},
        "email taken": {"email": "alice@example.com"},
        "email taken in upper case": {"email": "ALICE@example.com"},
        "handle too short": {"handle": "ab.test"},
        "handle too long": {"handle": "a" * 30 + ".test"},
        "handle with a dot": {"handle": "new.one.test"},
        "handle with an underscore": {"handle": "new_one.test"},
        "handle begins with a hyphen": {"handle": "-new.test"},
        "handle reserved": {"handle": "admin.test"},
        "handle of another domain": {"handle": "new.example.com"},
        "handle with a forbidden end": {"handle": "new.local"},
        "handle of one label": {"handle": "new"},
        "handle empty": {"handle": ""},
        "handle no string": {"handle": 5},
        "email without at": {"email": "new.example.com"},
        "email empty": {"email": ""},
        "password too long": {"password": "p" * 257},
        "password empty": {"password": ""},
        "foreign DID without token": {"did": NEVER},
        "DID without sense": {"did": "did:nonsense"},
        "PLC operation given": {"plcOp": {}},
        "recovery key without sense": {"recoveryKey": "did:key:nonsense"},
    }.items():
        await pair.post(f"sign up: {label}", f"{SERVER}.createAccount", {**good, **change})
    for missing in ("handle", "email", "password"):
        body = {key: value for key, value in good.items() if key != missing}
        await pair.post(f"sign up: no {missing}", f"{SERVER}.createAccount", body)
    await pair.post(
        "sign up: service token without sense",
        f"{SERVER}.createAccount",
        {**good, "did": NEVER},
        auth="Bearer nonsense",
    )


async def sessions(pair: Pair) -> None:
    """Sign in, renew, sign out."""
    create = f"{SERVER}.createSession"
    for label, name in {
        "by handle": "alice.test",
        "by handle in upper case": "ALICE.test",
        "by DID": "{alice.did}",
        "by email": "alice@example.com",
        "by email in upper case": "Alice@Example.com",
    }.items():
        body = {"identifier": name, "password": "alice password"}
        await pair.post(f"sign in {label}", create, body)
    for label, body in {
        "wrong password": {"identifier": "alice.test", "password": "wrong"},
        "unknown handle": {"identifier": "nobody.test", "password": "wrong"},
        "unknown DID": {"identifier": NEVER, "password": "wrong"},
        "unknown email": {"identifier": "nobody@example.com", "password": "wrong"},
        "no password": {"identifier": "alice.test"},
        "no identifier": {"password": "alice password"},
        "password no string": {"identifier": "alice.test", "password": 1},
        "empty body": {},
        "password of 600 characters": {"identifier": "alice.test", "password": "p" * 600},
    }.items():
        await pair.post(f"sign in: {label}", create, body)
    await pair.post(
        "sign in bob again",
        create,
        {"identifier": "bob.test", "password": "bob password"},
        save={"bob2.access": "accessJwt", "bob2.refresh": "refreshJwt"},
    )
    session, refresh, end = (f"{SERVER}.{m}Session" for m in ("get", "refresh", "delete"))
    await pair.get("session", session, auth="alice")
    await pair.get("session: refresh token", session, auth="Bearer {alice.refresh}")
    await pair.get("session: admin", session, auth="admin")
    await pair.get("session: nobody", session)
    await pair.get("session: nonsense", session, auth="Bearer nonsense")
    await pair.get("session: other scheme", session, auth="Digest nonsense")
    await pair.post("refresh: access token", refresh, auth="alice")
    await pair.post("refresh: nobody", refresh)
    await pair.post("refresh: nonsense", refresh, auth="Bearer a.b.c")
    renewed = {"bob3.access": "accessJwt", "bob3.refresh": "refreshJwt"}
    await pair.post("refresh", refresh, auth="Bearer {bob2.refresh}", save=renewed)
    await pair.post("refresh: the same again", refresh, auth="Bearer {bob2.refresh}")
    await pair.get("session: after refresh", session, auth="Bearer {bob3.access}")
    await pair.post("sign out: access token", end, auth="Bearer {bob3.access}")
    await pair.post("sign out", end, auth="Bearer {bob3.refresh}")
    await pair.post("sign out: again", end, auth="Bearer {bob3.refresh}")
    await pair.post("refresh: after sign out", refresh, auth="Bearer {bob3.refresh}")
    await pair.post("sign out: nobody", end)


async def app_passwords(pair: Pair) -> None:
    """Make, use and revoke app passwords."""
    make, show, revoke = (f"{SERVER}.{m}" for m in METHODS)
    saved = {"apppass": "password"}
    await pair.post("app password", make, {"name": "one"}, auth="alice", save=saved)
    await pair.post("app password: same name", make, {"name": "one"}, auth="alice")
    await pair.post("app password: no name", make, {}, auth="alice")
    await pair.post("app password: empty name", make, {"name": ""}, auth="alice")
    await pair.post("app password: nobody", make, {"name": "two"})
    await pair.post(
        "app password: privileged",
        make,
        {"name": "priv", "privileged": True},
        auth="alice",
        save={"privpass": "password"},
    )
    for name, word in (("app", "{apppass}"), ("priv", "{privpass}")):
        await pair.post(
            f"sign in with the {name} password",
            f"{SERVER}.createSession",
            {"identifier": "alice.test", "password": word},
            save={f"{name}.access": "accessJwt", f"{name}.refresh": "refreshJwt"},
        )
        await pair.get(f"session of the {name} password", f"{SERVER}.getSession", auth=name)
        await pair.post(f"app password by the {name} password", make, {"name": "x"}, auth=name)
        for method in ("requestAccountDelete", "requestEmailUpdate"):
            await pair.post(f"{method} by the {name} password", f"{SERVER}.{method}", auth=name)
        await pair.get(
            f"invite codes by the {name} password", f"{SERVER}.getAccountInviteCodes", auth=name
        )
        await pair.post(
            f"deactivate by the {name} password", f"{SERVER}.deactivateAccount", {}, auth=name
        )
        await pair.get(
            f"chat token by the {name} password",
            f"{SERVER}.getServiceAuth",
            {"aud": "did:web:chat.example.com", "lxm": "chat.bsky.convo.getLog"},
            auth=name,
        )
    await pair.get("app passwords", show, auth="alice")
    await pair.get("app passwords: nobody", show)
    await pair.post("app password revoked", revoke, {"name": "one"}, auth="alice")
    await pair.post("app password revoked again", revoke, {"name": "one"}, auth="alice")
    await pair.post("app password revoked: no name", revoke, {}, auth="alice")
    await pair.post(
        "refresh: of a revoked app password",
        f"{SERVER}.refreshSession",
        auth="Bearer {app.refresh}",
    )


METHODS = ("createAppPassword", "listAppPasswords", "revokeAppPassword")


async def service_tokens(pair: Pair) -> None:
    """Ask for service tokens."""
    method = f"{SERVER}.getServiceAuth"
    good = {"aud": "did:web:api.example.com", "lxm": "app.bsky.feed.getTimeline"}
    now_s = int(time.time())
    for label, change in {
        "plain": {},
        "audience with service": {"aud": "did:web:api.example.com#bsky_appview"},
        "expires soon": {"exp": now_s + 600},
        "expires in the past": {"exp": now_s - 600},
        "expires after hours": {"exp": now_s + 7200},
        "audience no DID": {"aud": "api.example.com"},
        "method no NSID": {"lxm": "nonsense"},
        "protected method": {"lxm": f"{SERVER}.deactivateAccount"},
        "protected method of identity": {"lxm": "com.atproto.identity.signPlcOperation"},
        "privileged method": {"lxm": "chat.bsky.convo.getLog"},
        "exp no number": {"exp": "soon"},
    }.items():
        await pair.get(f"service token: {label}", method, {**good, **change}, auth="alice")
    await pair.get("service token: no method", method, {"aud": good["aud"]}, auth="alice")
    await pair.get("service token: no audience", method, {"lxm": good["lxm"]}, auth="alice")
    await pair.get("service token: nobody", method, good)


async def invites(pair: Pair) -> None:
    """Invite codes by the operator and for accounts."""
    one, many = f"{SERVER}.createInviteCode", f"{SERVER}.createInviteCodes"
    await pair.post("invite", one, {"useCount": 2}, auth="admin", save={"invite": "code"})
    await pair.post("invite for bob", one, {"useCount": 1, "forAccount": "{bob.did}"}, auth="admin")
    await pair.post("invite: nobody", one, {"useCount": 1})
    await pair.post("invite: session", one, {"useCount": 1}, auth="alice")
    await pair.post("invite: wrong password", one, {"useCount": 1}, auth="Basic YWRtaW46eA==")
    await pair.post("invite: no count", one, {}, auth="admin")
    await pair.post("invites", many, {"codeCount": 2, "useCount": 1}, auth="admin")
    await pair.post(
        "invites for two",
        many,
        {"codeCount": 1, "useCount": 1, "forAccounts": ["{alice.did}", "{bob.did}"]},
        auth="admin",
    )
    mine = f"{SERVER}.getAccountInviteCodes"
    await pair.get("invite codes", mine, auth="bob")
    await pair.get("invite codes: unused only", mine, {"includeUsed": False}, auth="bob")
    await pair.get("invite codes: make none", mine, {"createAvailable": False}, auth="bob")
    await pair.get("invite codes: nobody", mine)
    await pair.sign_up("fred", inviteCode="{invite}")
    await pair.get("invites: recent", f"{ADMIN}.getInviteCodes", {"limit": 3}, auth="admin")
    await pair.get(
        "invites: by use", f"{ADMIN}.getInviteCodes", {"sort": "usage", "limit": 3}, auth="admin"
    )
    await pair.post(
        "invites disabled", f"{ADMIN}.disableInviteCodes", {"codes": ["{invite}"]}, auth="admin"
    )
    await pair.post(
        "invites disabled of the operator",
        f"{ADMIN}.disableInviteCodes",
        {"accounts": ["admin"]},
        auth="admin",
    )


ADMIN = "com.atproto.admin"


async def mail(pair: Pair) -> None:
    """Confirm and change an address, reset a password."""
    ask, confirm = f"{SERVER}.requestEmailConfirmation", f"{SERVER}.confirmEmail"
    address = "carol@example.com"
    await pair.post("confirmation asked", ask, auth="carol")
    await pair.post("confirmation asked: nobody", ask)
    await pair.set_code("code", address, "accounts 1")
    body = {"email": address, "token": "{code}"}
    wrong = {**body, "token": "AAAAA-AAAAA"}
    other = {**body, "email": "other@example.com"}
    await pair.post("confirm: wrong code", confirm, wrong, auth="carol")
    await pair.post("confirm: other address", confirm, other, auth="carol")
    await pair.post("confirm: no code", confirm, {"email": address}, auth="carol")
    await pair.post("confirm", confirm, body, auth="carol")
    await pair.post("confirm: again", confirm, body, auth="carol")
    await pair.get("session: confirmed", f"{SERVER}.getSession", auth="carol")

    ask, change = f"{SERVER}.requestEmailUpdate", f"{SERVER}.updateEmail"
    await pair.post("update asked: unconfirmed", ask, auth="dave")
    await pair.post("update: unconfirmed", change, {"email": "dave2@example.com"}, auth="dave")
    await pair.post("update asked", ask, auth="carol")
    await pair.post("update asked: nobody", ask)
    await pair.set_code("code", address, "accounts 2")
    body = {"email": "carol2@example.com"}
    await pair.post("update: no code", change, body, auth="carol")
    await pair.post("update: wrong code", change, {**body, "token": "AAAAA-AAAAA"}, auth="carol")
    taken = {"email": "alice@example.com", "token": "{code}"}
    await pair.post("update: taken", change, taken, auth="carol")
    await pair.post("update: no address", change, {"token": "{code}"}, auth="carol")
    bad = {"email": "nonsense", "token": "{code}"}
    await pair.post("update: bad address", change, bad, auth="carol")
    await pair.post("update asked again", ask, auth="carol")
    await pair.set_code("code", address, "accounts 3")
    await pair.post("update", change, {**body, "token": "{code}"}, auth="carol")
    await pair.get("session: new address", f"{SERVER}.getSession", auth="carol")

    ask, reset = f"{SERVER}.requestPasswordReset", f"{SERVER}.resetPassword"
    await pair.post("reset asked: unknown", ask, {"email": "nobody@example.com"})
    await pair.post("reset asked: no address", ask, {})
    await pair.post("reset asked", ask, {"email": "bob@example.com"})
    await pair.set_code("code", "bob@example.com", "accounts 4")
    await pair.post("reset: wrong code", reset, {"token": "AAAAA-AAAAA", "password": "bob2 words"})
    await pair.post("reset: no password", reset, {"token": "{code}"})
    await pair.post("reset: long password", reset, {"token": "{code}", "password": "p" * 300})
    await pair.post("reset", reset, {"token": "{code}", "password": "bob2 words"})
    await pair.post("reset: again", reset, {"token": "{code}", "password": "bob3 words"})
    await pair.post("refresh: after reset", f"{SERVER}.refreshSession", auth="Bearer {bob.refresh}")
    for label, word in {"old": "bob password", "new": "bob2 words"}.items():
        await pair.post(
            f"sign in with the {label} password",
            f"{SERVER}.createSession",
            {"identifier": "bob.test", "password": word},
        )
    await pair.post(
        "sign in bob once more",
        f"{SERVER}.createSession",
        {"identifier": "bob.test", "password": "bob2 words"},
        save={"bob.access": "accessJwt", "bob.refresh": "refreshJwt"},
    )


async def life(pair: Pair) -> None:
    """Deactivate, activate, delete."""
    status = f"{SERVER}.checkAccountStatus"
    await pair.get("status", status, auth="dave")
    await pair.get("status: nobody", status)
    await pair.post("activate: is active", f"{SERVER}.activateAccount", auth="dave")
    await pair.post("activate: nobody", f"{SERVER}.activateAccount")
    await pair.post("deactivate: nobody", f"{SERVER}.deactivateAccount", {})
    bad = {"deleteAfter": "tomorrow"}
    await pair.post("deactivate: bad date", f"{SERVER}.deactivateAccount", bad, auth="dave")
    until = {"deleteAfter": "2099-01-01T00:00:00.000Z"}
    await pair.post("deactivate", f"{SERVER}.deactivateAccount", until, auth="dave")
    await pair.post("deactivate: again", f"{SERVER}.deactivateAccount", {}, auth="dave")
    await deactivated(pair)
    await pair.post("activate", f"{SERVER}.activateAccount", auth="dave")
    await pair.post("activate: again", f"{SERVER}.activateAccount", auth="dave")
    await pair.get("session: active again", f"{SERVER}.getSession", auth="dave")
    await pair.get("status: active again", status, auth="dave")
    await pair.get(
        "repo status: active again", "com.atproto.sync.getRepoStatus", {"did": "{dave.did}"}
    )

    await pair.post("deletion asked: nobody", f"{SERVER}.requestAccountDelete")
    await pair.post("deletion asked", f"{SERVER}.requestAccountDelete", auth="erin")
    await pair.set_code("code", "erin@example.com", "accounts 5")
    delete = f"{SERVER}.deleteAccount"
    body = {"did": "{erin.did}", "password": "erin password", "token": "{code}"}
    wrong = {**body, "token": "AAAAA-AAAAA"}
    await pair.post("delete: wrong password", delete, {**body, "password": "wrong"})
    await pair.post("delete: wrong code", delete, wrong)
    await pair.post("delete: unknown account", delete, {**body, "did": NEVER})
    await pair.post("delete: no DID", delete, {"password": "erin password", "token": "{code}"})
    await pair.post("delete", delete, body)
    await pair.post("delete: again", delete, body)
    await pair.get("session: deleted", f"{SERVER}.getSession", auth="erin")
    await pair.post("refresh: deleted", f"{SERVER}.refreshSession", auth="Bearer {erin.refresh}")
    await pair.post(
        "sign in: deleted",
        f"{SERVER}.createSession",
        {"identifier": "{erin.did}", "password": "erin password"},
    )
    for method in ("getRepoStatus", "getLatestCommit", "getRepo", "listBlobs"):
        await pair.get(f"{method}: deleted", f"com.atproto.sync.{method}", {"did": "{erin.did}"})
    await pair.get(
        "describe repo: deleted", "com.atproto.repo.describeRepo", {"repo": "{erin.did}"}
    )
    await pair.post("reserve key", f"{SERVER}.reserveSigningKey", {})
    for again in ("", " again"):
        await pair.post(
            f"reserve key for DID{again}", f"{SERVER}.reserveSigningKey", {"did": NEVER}
        )
    await pair.post("reserve key: bad DID", f"{SERVER}.reserveSigningKey", {"did": "nonsense"})
    await pair.get("sign-up queue", "com.atproto.temp.checkSignupQueue", auth="alice")


async def deactivated(pair: Pair) -> None:
    """What a deactivated account may still do, and what others see of it."""
    await pair.get("session: deactivated", f"{SERVER}.getSession", auth="dave")
    await pair.get("status: deactivated", f"{SERVER}.checkAccountStatus", auth="dave")
    await pair.post(
        "refresh: deactivated",
        f"{SERVER}.refreshSession",
        auth="Bearer {dave.refresh}",
        save={"dave.access": "accessJwt", "dave.refresh": "refreshJwt"},
    )
    await pair.post(
        "sign in: deactivated",
        f"{SERVER}.createSession",
        {"identifier": "dave.test", "password": "dave password"},
    )
    record = {"$type": "app.bsky.feed.post", "text": "hi", "createdAt": "2026-01-01T00:00:00Z"}
    body = {"repo": "{dave.did}", "collection": "app.bsky.feed.post", "record": record}
    for method in ("createRecord", "putRecord", "deleteRecord"):
        more = {} if method == "createRecord" else {"rkey": "3kself2222222"}
        sent = {key: value for key, value in body.items() if key != "record" or method[0] != "d"}
        await pair.post(
            f"{method}: deactivated", f"com.atproto.repo.{method}", {**sent, **more}, auth="dave"
        )
    for method in ("getRepoStatus", "getLatestCommit", "getRepo", "listBlobs"):
        params = {"did": "{dave.did}"}
        await pair.get(f"{method}: deactivated", f"com.atproto.sync.{method}", params)
        await pair.get(
            f"{method}: own deactivated", f"com.atproto.sync.{method}", params, auth="dave"
        )
    await pair.get(
        "describe repo: deactivated", "com.atproto.repo.describeRepo", {"repo": "{dave.did}"}
    )
    await pair.get(
        "list records: deactivated",
        "com.atproto.repo.listRecords",
        {"repo": "{dave.did}", "collection": "app.bsky.feed.post"},
    )
    await pair.get(
        "resolve handle: deactivated", "com.atproto.identity.resolveHandle", {"handle": "dave.test"}
    )
    await pair.get(
        "service token: deactivated",
        f"{SERVER}.getServiceAuth",
        {"aud": "did:web:api.example.com", "lxm": "app.bsky.feed.getTimeline"},
        auth="dave",
    )
