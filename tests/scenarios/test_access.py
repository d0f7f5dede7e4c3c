"""Every method that is served, against credentials: a method without a row here fails (D1)."""

import base64

import pytest

from pds.app import METHOD_TABLES
from pds.store.accounts import update_deactivation
from pds.xrpc.server import Auth
from tests.scenarios.conftest import Host
from tests.support_client import XrpcError, sign_up

LEVELS = {
    "app.bsky.actor.getPreferences": Auth.SESSION_OR_MODERATOR,
    "app.bsky.actor.getProfile": Auth.SESSION,
    "app.bsky.actor.getProfiles": Auth.SESSION,
    "app.bsky.actor.putPreferences": Auth.SESSION,
    "app.bsky.feed.getActorLikes": Auth.SESSION,
    "app.bsky.feed.getAuthorFeed": Auth.SESSION,
    "app.bsky.feed.getFeed": Auth.SESSION,
    "app.bsky.feed.getPostThread": Auth.SESSION,
    "app.bsky.feed.getTimeline": Auth.SESSION,
    "app.bsky.notification.registerPush": Auth.SESSION,
    "app.bsky.notification.unregisterPush": Auth.SESSION,
    "com.atproto.admin.deleteAccount": Auth.ADMIN,
    "com.atproto.admin.disableAccountInvites": Auth.MODERATOR,
    "com.atproto.admin.disableInviteCodes": Auth.MODERATOR,
    "com.atproto.admin.enableAccountInvites": Auth.MODERATOR,
    "com.atproto.admin.getAccountInfo": Auth.MODERATOR,
    "com.atproto.admin.getAccountInfos": Auth.MODERATOR,
    "com.atproto.admin.getInviteCodes": Auth.MODERATOR,
    "com.atproto.admin.getSubjectStatus": Auth.MODERATOR,
    "com.atproto.admin.searchAccounts": Auth.MODERATOR,
    "com.atproto.admin.sendEmail": Auth.MODERATOR,
    "com.atproto.admin.updateAccountEmail": Auth.ADMIN,
    "com.atproto.admin.updateAccountHandle": Auth.ADMIN,
    "com.atproto.admin.updateAccountPassword": Auth.ADMIN,
    "com.atproto.admin.updateAccountSigningKey": Auth.ADMIN,
    "com.atproto.admin.updateSubjectStatus": Auth.MODERATOR,
    "com.atproto.identity.getRecommendedDidCredentials": Auth.SESSION_TAKENDOWN_OK,
    "com.atproto.identity.refreshIdentity": Auth.SESSION,
    "com.atproto.identity.requestPlcOperationSignature": Auth.FULL_TAKENDOWN_OK,
    "com.atproto.identity.resolveDid": Auth.NONE,
    "com.atproto.identity.resolveHandle": Auth.NONE,
    "com.atproto.identity.resolveIdentity": Auth.NONE,
    "com.atproto.identity.signPlcOperation": Auth.FULL_TAKENDOWN_OK,
    "com.atproto.identity.submitPlcOperation": Auth.FULL,
    "com.atproto.identity.updateHandle": Auth.FULL,
    "com.atproto.lexicon.resolveLexicon": Auth.NONE,
    "com.atproto.repo.applyWrites": Auth.SESSION,
    "com.atproto.repo.createRecord": Auth.SESSION,
    "com.atproto.repo.deleteRecord": Auth.SESSION,
    "com.atproto.repo.describeRepo": Auth.NONE,
    "com.atproto.repo.getRecord": Auth.NONE,
    "com.atproto.repo.importRepo": Auth.FULL,
    "com.atproto.repo.listMissingBlobs": Auth.SESSION,
    "com.atproto.repo.listRecords": Auth.NONE,
    "com.atproto.repo.putRecord": Auth.SESSION,
    "com.atproto.repo.uploadBlob": Auth.SESSION_OR_SERVICE,
    "com.atproto.server.activateAccount": Auth.FULL,
    "com.atproto.server.checkAccountStatus": Auth.SESSION_TAKENDOWN_OK,
    "com.atproto.server.confirmEmail": Auth.FULL,
    "com.atproto.server.createAccount": Auth.SERVICE_OPTIONAL,
    "com.atproto.server.createAppPassword": Auth.FULL,
    "com.atproto.server.createInviteCode": Auth.ADMIN,
    "com.atproto.server.createInviteCodes": Auth.ADMIN,
    "com.atproto.server.createSession": Auth.NONE,
    "com.atproto.server.deactivateAccount": Auth.FULL_TAKENDOWN_OK,
    "com.atproto.server.deleteAccount": Auth.NONE,
    "com.atproto.server.deleteSession": Auth.REFRESH,
    "com.atproto.server.describeServer": Auth.NONE,
    "com.atproto.server.getAccountInviteCodes": Auth.FULL,
    "com.atproto.server.getServiceAuth": Auth.SESSION_TAKENDOWN_OK,
    "com.atproto.server.getSession": Auth.SESSION,
    "com.atproto.server.listAppPasswords": Auth.FULL,
    "com.atproto.server.refreshSession": Auth.REFRESH,
    "com.atproto.server.requestAccountDelete": Auth.FULL_TAKENDOWN_OK,
    "com.atproto.server.requestEmailConfirmation": Auth.FULL,
    "com.atproto.server.requestEmailUpdate": Auth.FULL,
    "com.atproto.server.requestPasswordReset": Auth.NONE,
    "com.atproto.server.reserveSigningKey": Auth.NONE,
    "com.atproto.server.resetPassword": Auth.NONE,
    "com.atproto.server.revokeAppPassword": Auth.FULL,
    "com.atproto.server.updateEmail": Auth.FULL,
    "com.atproto.sync.getBlob": Auth.OPTIONAL,
    "com.atproto.sync.getBlocks": Auth.OPTIONAL,
    "com.atproto.sync.getCheckout": Auth.OPTIONAL,
    "com.atproto.sync.getHead": Auth.OPTIONAL,
    "com.atproto.sync.getHostStatus": Auth.NONE,
    "com.atproto.sync.getLatestCommit": Auth.OPTIONAL,
    "com.atproto.sync.getRecord": Auth.OPTIONAL,
    "com.atproto.sync.getRepo": Auth.OPTIONAL,
    "com.atproto.sync.getRepoStatus": Auth.NONE,
    "com.atproto.sync.listBlobs": Auth.OPTIONAL,
    "com.atproto.sync.listHosts": Auth.NONE,
    "com.atproto.sync.listRepos": Auth.NONE,
    "com.atproto.sync.listReposByCollection": Auth.NONE,
    "com.atproto.sync.notifyOfUpdate": Auth.NONE,
    "com.atproto.sync.requestCrawl": Auth.NONE,
    "com.atproto.sync.subscribeRepos": Auth.NONE,
    "com.atproto.temp.addReservedHandle": Auth.ADMIN,
    "com.atproto.temp.checkHandleAvailability": Auth.NONE,
    "com.atproto.temp.checkSignupQueue": Auth.SESSION,
    "com.atproto.temp.dereferenceScope": Auth.NONE,
    "com.atproto.temp.revokeAccountCredentials": Auth.ADMIN,
}

OPEN = {Auth.NONE, Auth.OPTIONAL, Auth.SERVICE_OPTIONAL}


def test_every_method_has_the_level_that_is_written_here() -> None:
    served = {entry.nsid: entry.auth for table in METHOD_TABLES for entry in table}
    assert served == LEVELS


async def _outcome(host: Host, nsid: str, did: str, authorization: str | None) -> tuple[int, str]:
    """Call a method with nothing but a credential; return status and error name."""
    method = host.server.services.catalog.method(nsid)
    assert method is not None
    params = {
        "did": did,
        "repo": did,
        "collection": "app.bsky.feed.post",
        "rkey": "3kaaaaaaaaa2a",
        "cid": "bafkreiftrdw3dgnrd44ohliul7daotoccfan2b4kqjze2tuqsb7llojjaq",
        "cids": "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum",
        "aud": "did:web:example.com",
        "handle": "nobody.test",
        "identifier": "nobody.test",
        "dids": did,
        "uri": f"at://{did}",
        "actor": did,
        "actors": did,
        "feed": f"at://{did}/app.bsky.feed.generator/x",
    }
    headers = {"Authorization": authorization} if authorization else {}
    verb = "POST" if method.kind == "procedure" else "GET"
    try:
        await host.client.call(verb, nsid, headers=headers, params=params if verb == "GET" else {})
    except XrpcError as error:
        return error.status, error.name
    return 200, ""


async def test_every_method_treats_missing_and_bad_credentials_alike(host: Host) -> None:
    """(XRPC-20, XRPC-21, XRPC-24, XRPC-28)"""
    wrong_admin = "Basic " + base64.b64encode(b"admin:wrong").decode()
    did = (await sign_up(host.client, "alice.test")).did
    wrong = []
    for nsid, level in LEVELS.items():
        # Guesses are limited, and these are meant: the right password forgives them.
        await host.server.services.admin.check("admin", host.admin_password, address="127.0.0.1")
        missing = await _outcome(host, nsid, did, None)
        junk = await _outcome(host, nsid, did, "Bearer junk")
        basic = await _outcome(host, nsid, did, wrong_admin)
        is_operator_only = level in (Auth.ADMIN, Auth.MODERATOR)
        name = "AuthenticationRequired" if is_operator_only else "AuthMissing"
        if (missing == (401, name)) == (level in OPEN):
            wrong.append(f"{nsid} without credential: {missing}")
        match level:
            case Auth.NONE:
                is_right = junk == basic == missing
            case Auth.OPTIONAL:
                is_right = junk == (400, "InvalidToken") and basic[0] == 401
            case Auth.ADMIN | Auth.MODERATOR:
                is_right = junk[0] == basic[0] == 401
            case Auth.SERVICE_OPTIONAL:
                is_right = junk[0] == 401 and basic == (400, "InvalidToken")
            case Auth.REFRESH:
                is_right = junk[0] == 400 and basic == (400, "InvalidToken")
            case _:
                is_right = junk == basic == (400, "InvalidToken")
        if not is_right:
            wrong.append(f"{nsid}: junk {junk}, wrong admin {basic}")
    assert not wrong, "\n".join(wrong)


async def test_an_app_password_is_no_main_password(host: Host) -> None:
    """(D2)"""
    alice = await sign_up(host.client, "alice.test")
    made = await alice.client.post("com.atproto.server.createAppPassword", name="phone")
    login = await host.client.post(
        "com.atproto.server.createSession", identifier="alice.test", password=made["password"]
    )
    phone = host.client.with_token(login["accessJwt"])
    for nsid in (nsid for nsid, level in LEVELS.items() if level is Auth.FULL):
        method = host.server.services.catalog.method(nsid)
        is_query = method is not None and method.kind == "query"
        with pytest.raises(XrpcError) as caught:
            await (phone.get(nsid) if is_query else phone.post(nsid, {"name": "x"}))
        assert caught.value.name == "InvalidToken", nsid


async def test_the_operator_makes_invites(host: Host) -> None:
    """(XRPC-28)"""
    basic = base64.b64encode(f"admin:{host.admin_password}".encode()).decode()
    answer = await host.client.call(
        "POST",
        "com.atproto.server.createInviteCode",
        json={"useCount": 1},
        headers={"Authorization": f"Basic {basic}"},
    )
    assert answer["code"]


async def test_a_deactivated_account_is_refused_before_its_body_is_read(host: Host) -> None:
    """(XRPC-24, XRPC-64) But not on the word of a memory that is older than the activation."""
    alice = await sign_up(host.client, "alice.test")
    await alice.client.post("com.atproto.server.deactivateAccount", {})
    for nsid in ("com.atproto.repo.createRecord", "com.example.thing.act"):
        with pytest.raises(XrpcError) as caught:
            await alice.client.post(nsid, {"nothing": "that it takes"})
        assert (caught.value.status, caught.value.name) == (401, "AccountDeactivated")
    account = await host.server.services.accounts.lookup(alice.did)
    assert account is not None
    await host.server.engine.transact(  # As another node does, of which this one has not heard.
        "test.activate",
        lambda txn: update_deactivation(txn, account.aid, deactivated_at=None, delete_after=None),
    )
    await alice.post("back again")
