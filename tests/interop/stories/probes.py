"""The same few wrong requests to every method that both serve."""

from typing import Final

from pds.protocol.lexicon.catalog import Method
from pds.services.lexicons import load_catalog
from tests.interop.side_by_side import Pair

METHODS: Final = {
    "com.atproto.admin": "deleteAccount disableAccountInvites disableInviteCodes "
    "enableAccountInvites getAccountInfo getAccountInfos getInviteCodes getSubjectStatus sendEmail "
    "updateAccountEmail updateAccountHandle updateAccountPassword updateSubjectStatus",
    "com.atproto.identity": "getRecommendedDidCredentials requestPlcOperationSignature "
    "resolveHandle signPlcOperation submitPlcOperation updateHandle",
    "com.atproto.moderation": "createReport",
    "com.atproto.repo": "applyWrites createRecord deleteRecord describeRepo getRecord importRepo "
    "listMissingBlobs listRecords putRecord uploadBlob",
    "com.atproto.server": "activateAccount checkAccountStatus confirmEmail createAccount "
    "createAppPassword createInviteCode createInviteCodes createSession deactivateAccount "
    "deleteAccount deleteSession describeServer getAccountInviteCodes getServiceAuth getSession "
    "listAppPasswords refreshSession requestAccountDelete requestEmailConfirmation "
    "requestEmailUpdate requestPasswordReset reserveSigningKey resetPassword revokeAppPassword "
    "updateEmail",
    "com.atproto.sync": "getBlob getBlocks getCheckout getHead getLatestCommit getRecord getRepo "
    "getRepoStatus listBlobs listRepos",
    "com.atproto.temp": "checkSignupQueue",
}
"""What the reference serves, by its own list of handlers."""


async def every_method(pair: Pair) -> None:
    """Nobody, nonsense for a token, the wrong verb, the wrong body."""
    catalog = load_catalog()
    for group, names in METHODS.items():
        for nsid in (f"{group}.{name}" for name in names.split()):
            method = catalog.method(nsid)
            assert method is not None
            await one_method(pair, nsid, method)


async def one_method(pair: Pair, nsid: str, method: Method) -> None:
    """All of it for one method."""
    verb, other = ("POST", "GET") if method.kind == "procedure" else ("GET", "POST")
    short = nsid.removeprefix("com.atproto.")
    await pair.request(f"probe {short}: nobody", nsid, verb=verb)
    await pair.request(f"probe {short}: nonsense", nsid, verb=verb, auth="Bearer a.b.c")
    await pair.request(f"probe {short}: empty scheme", nsid, verb=verb, auth="Bearer ")
    await pair.request(f"probe {short}: wrong verb", nsid, verb=other)
    if verb == "GET":
        await pair.request(f"probe {short}: no parameters", nsid, auth="carol")
        return
    for label, body, kind in (
        ("a list", b"[]", "application/json"),
        ("no JSON", b"{", "application/json"),
        ("other type", b"text", "text/plain"),
    ):
        auth = "admin" if group_of(nsid) == "admin" else "carol"
        headers = {"Content-Type": kind}
        await pair.post(f"probe {short}: {label}", nsid, body, auth=auth, headers=headers)


def group_of(nsid: str) -> str:
    """`admin` of com.atproto.admin.x."""
    return nsid.split(".")[2]
