"""What operators and moderators do, over real HTTP: takedowns on every way of reading, accounts,
invites, and the trail that all of it leaves.

Spec: (ACC-25, ACC-26, ACC-32, ACC-44, ACC-46, ACC-48, XRPC-28, SYNC-70, SYNC-80)
"""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from pds.config import Config
from pds.protocol.car import read_car
from pds.protocol.cid import parse_cid
from pds.protocol.keys import make_signer
from tests.scenarios.conftest import Host, host_in
from tests.support_client import Client, Person, sign_up
from tests.support_operator import ADMIN, REPO, Operator, refused

RECORD = "com.atproto.repo.strongRef"
BLOB = "com.atproto.admin.defs#repoBlobRef"
POST = "app.bsky.feed.post"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
FOREIGN_KEY = make_signer("k256", b"\x33" * 32).public_key.did_key


@pytest.fixture
def operator(host: Host) -> Operator:
    return Operator(host)


@pytest.fixture
async def alice(client: Client) -> Person:
    return await sign_up(client, "alice.test")


async def blocks_of(client: Client, did: str) -> dict[Any, bytes]:
    car = await client.get("com.atproto.sync.getRepo", did=did)
    return dict(read_car(car)[1])


async def test_a_record_that_is_taken_down_is_hidden_on_every_way_to_it(
    host: Host, client: Client, alice: Person, operator: Operator
) -> None:
    """ACC-44, promise D6: also in proofs, blocks and exports; its owner keeps all of it."""
    bad, good = await alice.post("bad"), await alice.post("good")
    did, rkey = alice.did, bad["uri"].rsplit("/", 1)[1]
    await operator.take_down(RECORD, uri=bad["uri"], cid=bad["cid"])
    get = {"repo": did, "collection": POST, "rkey": rkey}
    proof = {"did": did, "collection": POST, "rkey": rkey}
    for reader in (client, alice.client):
        assert await refused(reader.get("com.atproto.repo.getRecord", **get)) == (
            400,
            "RecordNotFound",
        )
        listed = await reader.get("com.atproto.repo.listRecords", repo=did, collection=POST)
        assert [record["uri"] for record in listed["records"]] == [good["uri"]]
    assert await refused(client.get("com.atproto.sync.getRecord", **proof)) == (
        400,
        "RecordNotFound",
    )
    blocks = {"did": did, "cids": [bad["cid"]]}
    assert await refused(client.get("com.atproto.sync.getBlocks", **blocks)) == (
        400,
        "BlockNotFound",
    )
    cid = parse_cid(bad["cid"])
    public, own = await blocks_of(client, did), await blocks_of(alice.client, did)
    assert cid not in public
    assert parse_cid(good["cid"]) in public
    assert set(own) == {*public, cid}
    assert cid in dict(read_car(await alice.client.get("com.atproto.sync.getBlocks", **blocks))[1])
    assert await alice.client.get("com.atproto.sync.getRecord", **proof)
    state = await operator.get("getSubjectStatus", uri=bad["uri"])
    assert state["takedown"] == {"applied": True, "ref": "case 7"}
    assert state["subject"] == {"$type": RECORD, "uri": bad["uri"], "cid": bad["cid"]}

    await operator.take_down(RECORD, applied=False, uri=bad["uri"], cid=bad["cid"])
    assert (await client.get("com.atproto.repo.getRecord", **get))["cid"] == bad["cid"]
    assert await blocks_of(client, did) == own
    assert (await operator.get("getSubjectStatus", uri=bad["uri"]))["takedown"] == {
        "applied": False
    }


async def test_a_blob_in_quarantine_is_not_served_and_not_collected(
    host: Host, client: Client, alice: Person, operator: Operator
) -> None:
    """ACC-44, XRPC-83, XRPC-85, XRPC-87."""
    blob = await alice.client.upload(PNG, "image/png")
    image = {"$type": "app.bsky.embed.images", "images": [{"alt": "", "image": blob}]}
    made = await alice.post("with image", embed=image)
    cid = blob["ref"]["$link"]
    subject = {"did": alice.did, "cid": cid}
    assert await client.get("com.atproto.sync.getBlob", **subject) == PNG
    await operator.take_down(BLOB, **subject)
    await operator.take_down(BLOB, **subject)
    assert await refused(client.get("com.atproto.sync.getBlob", **subject)) == (
        400,
        "BlobNotFound",
    )
    assert (await client.get("com.atproto.sync.listBlobs", did=alice.did))["cids"] == []
    assert (await alice.client.get("com.atproto.sync.listBlobs", did=alice.did))["cids"] == [cid]
    assert await alice.client.get("com.atproto.sync.getBlob", **subject) == PNG
    assert await operator.get("com.atproto.sync.getBlob", **subject) == PNG
    assert (await refused(alice.client.upload(PNG, "image/png")))[0] == 400
    state = await operator.get("getSubjectStatus", did=alice.did, blob=cid)
    assert state == {
        "subject": {"$type": BLOB, **subject},
        "takedown": {"applied": True, "ref": "case 7"},
    }

    rkey = made["uri"].rsplit("/", 1)[1]
    delete = {"repo": alice.did, "collection": POST, "rkey": rkey}
    await alice.client.post("com.atproto.repo.deleteRecord", delete)
    await host.server.services.blobs.collect()
    assert await operator.get("com.atproto.sync.getBlob", **subject) == PNG
    await operator.take_down(BLOB, applied=False, **subject)
    assert (await refused(operator.get("com.atproto.sync.getBlob", **subject)))[0] == 400
    assert await host.server.services.blobs.collect() == 1
    assert await alice.client.upload(PNG, "image/png") == blob


async def test_an_account_that_is_taken_down_loses_its_sessions_and_can_take_its_data_along(
    client: Client, alice: Person, operator: Operator, host: Host
) -> None:
    """ACC-44, ACC-45, SYNC-70, SYNC-81, XRPC-26."""
    await alice.post("hello")
    answer = await operator.take_down(REPO, did=alice.did)
    assert answer == {
        "subject": {"$type": REPO, "did": alice.did},
        "takedown": {"applied": True, "ref": "case 7"},
    }
    status = await client.get("com.atproto.sync.getRepoStatus", did=alice.did)
    assert (status["active"], status["status"]) == (False, "takendown")
    assert await refused(client.get("com.atproto.sync.getRepo", did=alice.did)) == (
        400,
        "RepoTakendown",
    )
    assert (await refused(alice.client.get("com.atproto.server.getSession")))[0] in (400, 401)
    refresh = client.with_token(alice.refresh_token)
    assert (await refused(refresh.post("com.atproto.server.refreshSession")))[0] in (400, 401)
    login = {"identifier": alice.handle, "password": alice.password, "allowTakendown": True}
    narrow = await client.post("com.atproto.server.createSession", login)
    export = client.with_token(narrow["accessJwt"])
    assert await export.get("com.atproto.sync.getRepo", did=alice.did)
    state = await operator.get("getSubjectStatus", did=alice.did)
    assert state["takedown"] == {"applied": True, "ref": "case 7"}
    assert state["deactivated"] == {"applied": False}

    both = {
        "subject": {"$type": REPO, "did": alice.did},
        "takedown": {"applied": True},
        "deactivated": {"applied": False},
    }
    assert await refused(operator.post("updateSubjectStatus", **both)) == (400, "InvalidRequest")
    seq = host.server.engine.last_seq
    await operator.take_down(REPO, did=alice.did)
    assert host.server.engine.last_seq == seq
    await operator.take_down(REPO, applied=False, did=alice.did)
    events = (await operator.order("event.list", account=alice.did, kind="account"))["events"]
    said = [(event.get("active"), event.get("status")) for event in events]
    assert said == [(True, None), (False, "takendown"), (True, None)]
    await client.get("com.atproto.sync.getRepo", did=alice.did)


async def test_operators_deactivate_and_activate_without_the_owner(
    client: Client, alice: Person, operator: Operator
) -> None:
    """ACC-44, SYNC-42."""
    subject = {"$type": REPO, "did": alice.did}
    await operator.post("updateSubjectStatus", subject=subject, deactivated={"applied": True})
    status = await client.get("com.atproto.sync.getRepoStatus", did=alice.did)
    assert status["status"] == "deactivated"
    info = await operator.get("getAccountInfo", did=alice.did)
    assert "deactivatedAt" in info
    await operator.post("updateSubjectStatus", subject=subject, deactivated={"applied": False})
    status = await client.get("com.atproto.sync.getRepoStatus", did=alice.did)
    assert status["active"] is True
    events = (await operator.order("event.list", account=alice.did, limit=3))["events"]
    assert [event["kind"] for event in reversed(events)] == ["account", "identity", "sync"]


async def test_operators_look_up_and_set_accounts_in_any_state(
    client: Client, alice: Person, operator: Operator
) -> None:
    """ACC-48, ACC-32."""
    bob = await sign_up(client, "bob.test")
    info = await operator.get("getAccountInfo", did=alice.did)
    assert (info["handle"], info["email"], info["invites"]) == (
        "alice.test",
        "alice@example.test",
        [],
    )
    assert await refused(operator.get("getAccountInfo", did="did:plc:nobody")) == (400, "NotFound")
    pairs = [("dids", alice.did), ("dids", bob.did), ("dids", "did:plc:nobody")]
    infos = await operator.client.call(
        "GET", ADMIN + "getAccountInfos", params=pairs, headers=operator.headers
    )
    assert [entry["did"] for entry in infos["infos"]] == [alice.did, bob.did]
    found = await operator.get("searchAccounts", email="BOB@")
    assert [entry["did"] for entry in found["accounts"]] == [bob.did]
    page = await operator.get("searchAccounts", limit=1)
    assert [entry["did"] for entry in page["accounts"]] == [alice.did]
    page = await operator.get("searchAccounts", limit=1, cursor=page["cursor"])
    assert [entry["did"] for entry in page["accounts"]] == [bob.did]
    assert "cursor" not in page
    assert (await operator.get("searchAccounts", email="a%b"))["accounts"] == []

    await operator.take_down(REPO, did=alice.did)
    await operator.post("updateAccountEmail", account=alice.handle, email="New@Example.test")
    info = await operator.get("getAccountInfo", did=alice.did)
    assert info["email"] == "new@example.test"
    assert "emailConfirmedAt" not in info
    taken = operator.post("updateAccountEmail", account=alice.did, email="bob@example.test")
    assert await refused(taken) == (400, "InvalidRequest")
    await operator.take_down(REPO, applied=False, did=alice.did)
    await operator.post("updateAccountPassword", did=bob.did, password="another password")
    assert (await refused(bob.client.get("com.atproto.server.getSession")))[0] in (400, 401)
    login = {"identifier": "bob.test", "password": "another password"}
    await client.post("com.atproto.server.createSession", login)
    short = operator.post("updateAccountPassword", did=bob.did, password="short")
    assert (await refused(short))[0] == 400


async def test_operators_give_handles_and_keys(
    host: Host, client: Client, alice: Person, operator: Operator
) -> None:
    """ACC-48, ID-72: reserved names are the operator's to give; keys only those held here."""
    handle = {"did": alice.did, "handle": "admin.test"}
    said = await operator.order(
        "account.set-handle", account=alice.did, handle="Admin.test", dryRun=True
    )
    assert said == {"did": alice.did, "handle": "admin.test"}
    assert (await operator.get("getAccountInfo", did=alice.did))["handle"] == "alice.test"
    await operator.post("updateAccountHandle", **handle)
    found = await client.get("com.atproto.identity.resolveHandle", handle="admin.test")
    assert found["did"] == alice.did
    strange = operator.post("updateAccountHandle", did="did:plc:nobody", handle="x.test")
    assert await refused(strange) == (400, "NotFound")
    reserved = await client.post("com.atproto.server.reserveSigningKey", did=alice.did)
    key = reserved["signingKey"]
    foreign = FOREIGN_KEY
    other = operator.post("updateAccountSigningKey", did=alice.did, signingKey=foreign)
    assert await refused(other) == (400, "InvalidRequest")
    await operator.post("updateAccountSigningKey", did=alice.did, signingKey=key)
    await alice.post("with the new key")
    turned = await operator.order("account.rotate-key", account="admin.test")
    assert turned["signingKey"] not in (key, foreign)
    acts = (await operator.order("audit.list", subject=alice.did))["acts"]
    assert len(acts) == 3
    assert {act["actor"] for act in acts} == {"admin"}


async def test_operators_delete_accounts(client: Client, alice: Person, operator: Operator) -> None:
    """ACC-46: the trail and the last event stay."""
    await operator.post("deleteAccount", did=alice.did)
    assert await refused(client.get("com.atproto.sync.getRepoStatus", did=alice.did)) == (
        400,
        "RepoNotFound",
    )
    assert await refused(operator.post("deleteAccount", did=alice.did)) == (400, "NotFound")
    acts = (await operator.order("audit.list", subject=alice.did))["acts"]
    assert [(act["act"], act["before"]["handle"]) for act in acts] == [
        ("account.delete", "alice.test")
    ]


async def test_invites_are_listed_disabled_and_barred(tmp_path: Any) -> None:
    """ACC-25, ACC-26."""

    def with_codes(config: Config) -> Config:
        return replace(config, sign_up=replace(config.sign_up, invite_required=True))

    async with host_in(tmp_path, change=with_codes) as host:
        await _use_invites(host.client, Operator(host))


async def _use_invites(client: Client, operator: Operator) -> None:
    made = await operator.order("account.create", handle="alice.test", email="a@b.cd")
    assert len(made["password"]) >= 16
    did = made["did"]
    again = operator.order("account.create", handle="other.test", email="a@b.cd")
    assert (await refused(again))[0] == 400
    acts = (await operator.order("audit.list", limit=4))["acts"]
    assert [act["act"] for act in acts] == [
        "invite.disable",
        "account.create.failed",
        "invite.create",
        "account.create",
    ]
    codes = []
    for uses in (1, 2, 3):
        made = await operator.post(
            "com.atproto.server.createInviteCode", useCount=uses, forAccount=did
        )
        codes.append(made["code"])
    await sign_up(client, "bob.test", inviteCode=codes[1])
    carol = await sign_up(client, "carol.test", inviteCode=codes[1])
    listed = await operator.get("getInviteCodes", sort="usage", limit=1)
    assert [code["code"] for code in listed["codes"]] == [codes[1]]
    assert listed["codes"][0]["uses"][0]["usedBy"] == carol.did
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await operator.get("getInviteCodes", limit=2, **cursor)
        seen += [code["code"] for code in page["codes"]]
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert seen[:3] == codes[::-1]
    assert len(seen) == 5  # one was made for the account, one for that which was refused
    for wrong in ({"sort": "odd"}, {"cursor": "x"}):
        assert (await refused(operator.get("getInviteCodes", **wrong)))[0] == 400
    info = await operator.get("getAccountInfo", did=carol.did)
    assert info["invitedBy"]["code"] == codes[1]

    await operator.post("disableInviteCodes", codes=[codes[0]])
    listed = await operator.get("getInviteCodes")
    disabled = [code["code"] for code in listed["codes"] if code["disabled"]]
    assert disabled[0] == codes[0]
    assert len(disabled) == 2
    admins = operator.post("disableInviteCodes", accounts=["admin"])
    assert await refused(admins) == (400, "InvalidRequest")
    await operator.post("disableAccountInvites", account=did, note="spam")
    assert (await operator.get("getAccountInfo", did=did))["invitesDisabled"] is True
    barred = sign_up(client, "dora.test", inviteCode=codes[2])
    assert await refused(barred) == (400, "InvalidInviteCode")
    await operator.post("enableAccountInvites", account=did)
    await sign_up(client, "dora.test", inviteCode=codes[2])
    await operator.post("disableInviteCodes", accounts=[did])
    acts = (await operator.order("audit.list", subject=did))["acts"]
    assert [(act["act"], act.get("note")) for act in acts[:3]] == [
        ("invite.disable", None),
        ("account.enable-invites", None),
        ("account.disable-invites", "spam"),
    ]
    assert not any(code in json.dumps(acts) for code in codes)


async def test_moderators_write_to_people(
    host: Host, client: Client, alice: Person, operator: Operator
) -> None:
    """The mail is sent; its text is not kept."""
    sent = await operator.post(
        "sendEmail",
        recipientDid=alice.did,
        senderDid=alice.did,
        content="Please stop",
        subject="A word",
        comment="first warning",
    )
    assert sent == {"sent": True}
    mail = host.mailbox.received()[-1].mail
    assert (mail.to, mail.subject) == ("alice@example.test", "A word")
    assert "Please stop" in mail.text
    acts = (await operator.order("audit.list", subject=alice.did))["acts"]
    assert [(act["act"], act["after"]) for act in acts] == [
        ("account.send-mail", {"subject": "A word", "comment": "first warning"})
    ]
    stranger = operator.post(
        "sendEmail", recipientDid="did:plc:nobody", senderDid=alice.did, content="x"
    )
    assert await refused(stranger) == (400, "InvalidRequest")


async def test_orders_need_the_password_and_json(host: Host, operator: Operator) -> None:
    """The operator's own path refuses what the methods refuse."""
    url = f"{host.client.url}/admin/api/account.list"
    http = host.client.http
    wrong = {"Authorization": "Basic " + base64.b64encode(b"admin:guess").decode()}
    for headers, body, status in (
        ({}, b"{}", 401),
        (wrong, b"{}", 401),
        ({"Authorization": "Bearer x"}, b"{}", 401),
        (operator.headers, b"{", 400),
        (operator.headers, b"[]", 400),
        (operator.headers, b'{"limit": "many"}', 400),
        (operator.headers, b'{"status": "odd"}', 400),
        (operator.headers, b"x" * 200_000, 413),
    ):
        typed = {**headers, "Content-Type": "application/json"}
        async with http.post(url, data=body, headers=typed) as answer:
            assert (answer.status, "error" in await answer.json()) == (status, True)
    async with http.post(url, data=b"{}", headers=operator.headers) as answer:
        assert answer.status == 415
    async with http.get(url, headers=operator.headers) as answer:
        assert answer.status == 405
    assert await refused(operator.order("account.vanish")) == (404, "MethodNotImplemented")


async def test_orders_refuse_cursors_and_limits_that_are_none(
    alice: Person, operator: Operator
) -> None:
    """Promise C1: nothing that is sent here is a fault of ours."""
    for name in ("event.list", "audit.list", "move.list"):
        for cursor in ("9" * 30, "\u00b2", "-1", "x", ""):
            wrong = operator.order(name, cursor=cursor)
            assert await refused(wrong) == (400, "InvalidRequest"), (name, cursor)
    for name in ("blob.missing", "event.list", "audit.list", "move.list", "account.list"):
        for limit in (-5, 0, 2**62):
            assert await operator.order(name, account=alice.did, limit=limit) is not None


async def test_a_rehearsal_changes_nothing(
    host: Host, client: Client, alice: Person, operator: Operator
) -> None:
    """What it says would be is what is then done."""
    seq = host.server.engine.last_seq
    said = await operator.order("account.takedown", account=alice.handle, ref="x", dryRun=True)
    assert said["before"] == {"status": "active"}
    assert said["after"] == {"status": "takendown", "takedownRef": "x"}
    for name, fields in (
        ("account.delete", {}),
        ("account.end-sessions", {}),
        ("account.set-email", {"email": "x@y.zz"}),
        ("account.set-password", {"password": "12345678"}),
        ("account.disable-invites", {}),
    ):
        await operator.order(name, account=alice.did, dryRun=True, **fields)
    assert (await operator.order("invite.create", dryRun=True))["codes"]
    new = {"handle": "new.test", "email": "new@example.test"}
    assert await operator.order("account.create", dryRun=True, **new) == new
    for wrong in ({"email": "no"}, {"handle": "alice.test"}, {"password": "short"}):
        assert (await refused(operator.order("account.create", dryRun=True, **{**new, **wrong})))[
            0
        ] == 400
    await operator.order("event.request-crawl", dryRun=True)
    await alice.client.get("com.atproto.server.getSession")
    assert (await operator.order("audit.list"))["acts"] == []
    assert (await operator.order("invite.list"))["codes"] == []
    assert host.server.engine.last_seq == seq
    done = await operator.order("account.takedown", account=alice.handle, ref="x")
    assert done == said
