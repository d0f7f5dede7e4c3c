"""One harmless request to every method, for the matrix of access.

A request says what it names (an account of the cell, or `open`, an account that is always active),
and which answers it gets once its caller was let in: none of those is about the caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

POST = "app.bsky.feed.post"
RECORD = {"$type": POST, "text": "hello", "createdAt": "2026-01-02T03:04:05.000Z"}
NOBODY = "did:plc:nobodynobodynobodynobody"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)

Answer = tuple[int, str]
OK: Answer = (200, "")
BAD: Answer = (400, "InvalidRequest")
NOT_FOUND: Answer = (400, "NotFound")


@dataclass
class Named:
    """What requests name of an account."""

    did: str
    handle: str = "nobody.test"
    email: str = "nobody@example.test"
    rkey: str = "3kaaaaaaaaa2a"
    record: str = "bafyreidwroesxuw5qzp4pdvvpbxv4bjuvhubqz4zfz3de6pi3a5c5rryum"
    blob: str = "bafkreiftrdw3dgnrd44ohliul7daotoccfan2b4kqjze2tuqsb7llojjaq"


Fields = Callable[[Named], Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One request. `fields` are parameters of a query, or the JSON of a procedure.

    `of_caller` names the account of the cell, others name the open account (or, in the part of the
    matrix about subjects, the account that it is about).
    """

    fields: Fields | None = None
    answer: Answer = OK
    content: bytes | None = None
    content_type: str = "image/png"
    of_caller: bool = False


def fixed(**fields: Any) -> Fields:
    return lambda _: fields


def did(named: Named) -> Mapping[str, Any]:
    return {"did": named.did}


def repo(**more: Any) -> Fields:
    return lambda named: {"repo": named.did, "collection": POST, **more}


def writes(named: Named) -> Mapping[str, Any]:
    create = {"$type": "com.atproto.repo.applyWrites#create", "collection": POST, "value": RECORD}
    return {"repo": named.did, "writes": [create]}


def path(key: str) -> Fields:
    return lambda named: {key: named.did, "collection": POST, "rkey": named.rkey}


def account(**more: Any) -> Fields:
    return lambda named: {"account": named.did, **more}


def with_did(**more: Any) -> Fields:
    return lambda named: {"did": named.did, **more}


def repo_ref(named: Named) -> Mapping[str, Any]:
    return {"subject": {"$type": "com.atproto.admin.defs#repoRef", "did": named.did}}


def mail(named: Named) -> Mapping[str, Any]:
    return {"recipientDid": named.did, "senderDid": named.did, "content": "A word"}


PUSH = fixed(serviceDid=NOBODY, token="x", platform="web", appId="x")

REQUESTS: dict[str, Request] = {
    "app.bsky.actor.getPreferences": Request(did),
    "app.bsky.actor.getProfile": Request(lambda named: {"actor": named.did}),
    "app.bsky.actor.getProfiles": Request(lambda named: {"actors": named.did}),
    "app.bsky.actor.putPreferences": Request(fixed(preferences=[])),
    "app.bsky.feed.getActorLikes": Request(lambda named: {"actor": named.did}, BAD),
    "app.bsky.feed.getAuthorFeed": Request(lambda named: {"actor": named.did}),
    "app.bsky.feed.getFeed": Request(
        lambda named: {"feed": f"at://{named.did}/app.bsky.feed.generator/none"}, BAD
    ),
    "app.bsky.feed.getPostThread": Request(
        lambda named: {"uri": f"at://{named.did}/{POST}/{named.rkey}"}
    ),
    "app.bsky.feed.getTimeline": Request(),
    "app.bsky.notification.registerPush": Request(PUSH, BAD),
    "app.bsky.notification.unregisterPush": Request(PUSH, BAD),
    "com.atproto.admin.deleteAccount": Request(did),
    "com.atproto.admin.disableAccountInvites": Request(account()),
    "com.atproto.admin.disableInviteCodes": Request(fixed(codes=["none"])),
    "com.atproto.admin.enableAccountInvites": Request(account()),
    "com.atproto.admin.getAccountInfo": Request(did),
    "com.atproto.admin.getAccountInfos": Request(lambda named: {"dids": named.did}),
    "com.atproto.admin.getInviteCodes": Request(),
    "com.atproto.admin.getSubjectStatus": Request(did),
    "com.atproto.admin.searchAccounts": Request(),
    "com.atproto.admin.sendEmail": Request(mail),
    "com.atproto.admin.updateAccountEmail": Request(
        lambda named: {"account": named.did, "email": named.email}
    ),
    "com.atproto.admin.updateAccountHandle": Request(
        lambda named: {"did": named.did, "handle": named.handle}
    ),
    "com.atproto.admin.updateAccountPassword": Request(with_did(password="another password")),
    "com.atproto.admin.updateAccountSigningKey": Request(
        with_did(signingKey="did:key:zQ3shZc2QzApp2oymGvQbzP8eKheVshBHbU4ZYjeXqwSKEn6N"), BAD
    ),
    "com.atproto.admin.updateSubjectStatus": Request(repo_ref),
    "com.atproto.identity.getRecommendedDidCredentials": Request(),
    "com.atproto.identity.refreshIdentity": Request(lambda named: {"identifier": named.did}),
    "com.atproto.identity.requestPlcOperationSignature": Request(),
    "com.atproto.identity.resolveDid": Request(did),
    "com.atproto.identity.resolveHandle": Request(lambda named: {"handle": named.handle}),
    "com.atproto.identity.resolveIdentity": Request(lambda named: {"identifier": named.did}),
    "com.atproto.identity.signPlcOperation": Request(fixed(), BAD),
    "com.atproto.identity.submitPlcOperation": Request(fixed(operation={}), BAD),
    "com.atproto.identity.updateHandle": Request(fixed(handle="x.test"), (400, "InvalidHandle")),
    "com.atproto.lexicon.resolveLexicon": Request(None, BAD),
    "com.atproto.repo.applyWrites": Request(writes, of_caller=True),
    "com.atproto.repo.createRecord": Request(repo(record=RECORD), of_caller=True),
    "com.atproto.repo.deleteRecord": Request(repo(rkey="3kaaaaaaaaa2b"), of_caller=True),
    "com.atproto.repo.describeRepo": Request(lambda named: {"repo": named.did}),
    "com.atproto.repo.getRecord": Request(path("repo")),
    "com.atproto.repo.importRepo": Request(
        None, BAD, content=b"no archive", content_type="application/vnd.ipld.car"
    ),
    "com.atproto.repo.listMissingBlobs": Request(),
    "com.atproto.repo.listRecords": Request(repo()),
    "com.atproto.repo.putRecord": Request(
        repo(rkey="3kaaaaaaaaa2c", record=RECORD), of_caller=True
    ),
    "com.atproto.repo.uploadBlob": Request(content=PNG),
    "com.atproto.server.activateAccount": Request(),
    "com.atproto.server.checkAccountStatus": Request(),
    "com.atproto.server.confirmEmail": Request(fixed(email="x@example.test"), BAD),
    "com.atproto.server.createAccount": Request(fixed(handle="x.test"), (400, "InvalidPassword")),
    "com.atproto.server.createAppPassword": Request(fixed(name="matrix")),
    "com.atproto.server.createInviteCode": Request(fixed(useCount=1)),
    "com.atproto.server.createInviteCodes": Request(fixed(useCount=1, codeCount=1)),
    "com.atproto.server.createSession": Request(fixed(identifier="open.test"), BAD),
    "com.atproto.server.deactivateAccount": Request(fixed()),
    "com.atproto.server.deleteAccount": Request(did, BAD),
    "com.atproto.server.deleteSession": Request(),
    "com.atproto.server.describeServer": Request(),
    "com.atproto.server.getAccountInviteCodes": Request(),
    "com.atproto.server.getServiceAuth": Request(fixed(aud="did:web:example.com")),
    "com.atproto.server.getSession": Request(),
    "com.atproto.server.listAppPasswords": Request(),
    "com.atproto.server.refreshSession": Request(),
    "com.atproto.server.requestAccountDelete": Request(),
    "com.atproto.server.requestEmailConfirmation": Request(),
    "com.atproto.server.requestEmailUpdate": Request(),
    "com.atproto.server.requestPasswordReset": Request(fixed(email="nobody@example.test")),
    "com.atproto.server.reserveSigningKey": Request(fixed(did=NOBODY)),
    "com.atproto.server.resetPassword": Request(fixed(password="another password"), BAD),
    "com.atproto.server.revokeAppPassword": Request(fixed(name="none")),
    "com.atproto.server.updateEmail": Request(fixed(email="not an address"), BAD),
    "com.atproto.sync.getBlob": Request(lambda named: {"did": named.did, "cid": named.blob}),
    "com.atproto.sync.getBlocks": Request(lambda named: {"did": named.did, "cids": named.record}),
    "com.atproto.sync.getCheckout": Request(did),
    "com.atproto.sync.getHead": Request(did),
    "com.atproto.sync.getHostStatus": Request(
        fixed(hostname="other.example.com"), (400, "HostNotFound")
    ),
    "com.atproto.sync.getLatestCommit": Request(did),
    "com.atproto.sync.getRecord": Request(path("did")),
    "com.atproto.sync.getRepo": Request(did),
    "com.atproto.sync.getRepoStatus": Request(did),
    "com.atproto.sync.listBlobs": Request(did),
    "com.atproto.sync.listHosts": Request(),
    "com.atproto.sync.listRepos": Request(),
    "com.atproto.sync.listReposByCollection": Request(fixed(collection=POST)),
    "com.atproto.sync.notifyOfUpdate": Request(fixed(hostname="localhost")),
    "com.atproto.sync.requestCrawl": Request(fixed(hostname="localhost")),
    "com.atproto.sync.subscribeRepos": Request(None, (426, "InvalidRequest")),
    "com.atproto.temp.addReservedHandle": Request(fixed(handle="matrix")),
    "com.atproto.temp.checkHandleAvailability": Request(fixed(handle="free-for-all.test")),
    "com.atproto.temp.checkSignupQueue": Request(),
    "com.atproto.temp.dereferenceScope": Request(
        fixed(scope="ref:x"), (400, "InvalidScopeReference")
    ),
    "com.atproto.temp.revokeAccountCredentials": Request(account()),
}
"""By method; a method that is served and has no row here fails."""

ELSEWHERE: dict[str, Request] = {
    "com.example.thing.get": Request(None, BAD),
    "com.atproto.moderation.createReport": Request(fixed(), (502, "UpstreamFailure")),
}
"""Methods that are not ours: nobody answers for the first, and nobody is there for the second."""
