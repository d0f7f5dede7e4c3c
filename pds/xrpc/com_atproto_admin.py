"""com.atproto.admin.*: what operators and moderators do.

Methods at the level `MODERATOR` are also open to the configured moderation service, the others to
the operator alone (XRPC-28). Who it was goes into the audit trail with the act. Taking down and
looking up are use cases of `services/moderation` and `services/admin_accounts`; here are names,
unions and the shape of answers.
"""

from typing import Any, Final, cast

from pds.errors import RequestError
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.data import Json
from pds.protocol.syntax import AtUri, Did, InvalidSyntax, parse_at_uri
from pds.services.admin_accounts import MailOrder, account_view, invite_view
from pds.services.audit import Order, order_of
from pds.services.moderation import (
    AccountChange,
    BlobSubject,
    RecordSubject,
    SubjectState,
    subject_not_found,
)
from pds.xrpc.access import ACCOUNT, ACCOUNT_GIVEN, ACCOUNTS
from pds.xrpc.auth import Auth
from pds.xrpc.server import Call, MethodTable

routes: Final = MethodTable()

REPO: Final = "com.atproto.admin.defs#repoRef"
RECORD: Final = "com.atproto.repo.strongRef"
BLOB: Final = "com.atproto.admin.defs#repoBlobRef"


@routes.method("com.atproto.admin.updateSubjectStatus", auth=Auth.MODERATOR, subject=ACCOUNT)
async def update_subject_status(call: Call) -> Json:
    """Take down an account, a record or a blob, or lift that; deactivate an account (ACC-44)."""
    body = _body(call)
    subject: dict[str, Any] = body["subject"]
    takedown: dict[str, Any] | None = body.get("takedown")
    deactivated: dict[str, Any] | None = body.get("deactivated")
    order, moderation = _order(call), call.services.operator.moderation
    kind = subject.get("$type")
    if kind == REPO and takedown is None and deactivated is None:
        await moderation.account_state(subject["did"])  # It must be here, and nothing is asked.
    elif kind == REPO:
        change = AccountChange(
            takedown=_applied(takedown),
            takedown_ref=None if takedown is None else takedown.get("ref"),
            deactivated=_applied(deactivated),
        )
        await moderation.change_account(Did(subject["did"]), change, order)
    elif kind not in (RECORD, BLOB):
        raise RequestError("InvalidRequest", "Invalid subject")
    elif takedown is not None:
        is_on, ref = bool(takedown["applied"]), takedown.get("ref")
        if kind == RECORD:
            record = _record(subject["uri"], _cid(subject["cid"]))
            await moderation.change_record(record, takedown=is_on, ref=ref, order=order)
        else:
            blob = BlobSubject(Did(subject["did"]), _cid(subject["cid"]))
            await moderation.change_blob(blob, takedown=is_on, ref=ref, order=order)
    answer: dict[str, Json] = {"subject": subject}
    if takedown is not None:
        answer["takedown"] = takedown
    return answer


@routes.method("com.atproto.admin.getSubjectStatus", auth=Auth.MODERATOR, subject=ACCOUNT)
async def get_subject_status(call: Call) -> Json:
    """Show whether an account, a record or a blob is taken down."""
    did, uri, blob = (call.params.get(name) for name in ("did", "uri", "blob"))
    moderation = call.services.operator.moderation
    if blob is not None:
        if did is None:
            raise RequestError("InvalidRequest", "Must provide a did to request blob state")
        cid = _cid(blob)
        state = await moderation.blob_state(BlobSubject(Did(did), cid))
        return _status({"$type": BLOB, "did": did, "cid": str(cid)}, state)
    if uri is not None:
        record = _record(uri, None)
        state = await moderation.record_state(record)
        return _status({"$type": RECORD, "uri": record.uri, "cid": str(state.cid)}, state)
    if did is None:
        raise RequestError("InvalidRequest", "No provided subject")
    return _status({"$type": REPO, "did": did}, await moderation.account_state(did))


@routes.method("com.atproto.admin.getAccountInfo", auth=Auth.MODERATOR, subject=ACCOUNT)
async def get_account_info(call: Call) -> Json:
    """Show one account, in any state (ACC-48)."""
    infos = await call.services.operator.accounts.infos([call.params["did"]])
    if not infos:
        raise RequestError("NotFound", "Account not found")
    return account_view(infos[0])


@routes.method("com.atproto.admin.getAccountInfos", auth=Auth.MODERATOR, subject=ACCOUNTS)
async def get_account_infos(call: Call) -> Json:
    """Show accounts, in any state; those that are not here are left out (ACC-48)."""
    infos = await call.services.operator.accounts.infos(call.params["dids"])
    return {"infos": [account_view(info) for info in infos]}


@routes.method("com.atproto.admin.searchAccounts", auth=Auth.MODERATOR)
async def search_accounts(call: Call) -> Json:
    """List accounts, those with a part of an address or all, in the order of their creation."""
    params = call.params
    infos, cursor = await call.services.operator.accounts.search(
        email=params.get("email"), cursor=params.get("cursor"), limit=params["limit"]
    )
    return _page("accounts", [account_view(info) for info in infos], cursor)


@routes.method("com.atproto.admin.enableAccountInvites", auth=Auth.MODERATOR, subject=ACCOUNT)
async def enable_account_invites(call: Call) -> None:
    """Let an account invite again (ACC-26)."""
    body = _body(call)
    await call.services.operator.accounts.set_inviting(
        body["account"], _order(call, body.get("note")), is_allowed=True
    )


@routes.method("com.atproto.admin.disableAccountInvites", auth=Auth.MODERATOR, subject=ACCOUNT)
async def disable_account_invites(call: Call) -> None:
    """Bar an account from inviting; the codes that it holds work no more (ACC-25, ACC-26)."""
    body = _body(call)
    await call.services.operator.accounts.set_inviting(
        body["account"], _order(call, body.get("note")), is_allowed=False
    )


@routes.method("com.atproto.admin.disableInviteCodes", auth=Auth.MODERATOR)
async def disable_invite_codes(call: Call) -> None:
    """Disable codes by themselves or by their holders (ACC-26)."""
    body = _body(call)
    await call.services.operator.accounts.disable_codes(
        _order(call), codes=body.get("codes", []), holders=body.get("accounts", [])
    )


@routes.method("com.atproto.admin.getInviteCodes", auth=Auth.MODERATOR)
async def get_invite_codes(call: Call) -> Json:
    """List invite codes, the newest or the most used first."""
    params = call.params
    codes, cursor = await call.services.operator.accounts.list_codes(
        sort=params["sort"], cursor=params.get("cursor"), limit=params["limit"]
    )
    return _page("codes", [invite_view(code) for code in codes], cursor)


@routes.method("com.atproto.admin.sendEmail", auth=Auth.MODERATOR, subject=ACCOUNT_GIVEN)
async def send_email(call: Call) -> Json:
    """Send a mail to the holder of an account."""
    body = _body(call)
    mail = MailOrder(Did(body["recipientDid"]), body["content"], comment=body.get("comment"))
    if body.get("subject"):
        mail = MailOrder(mail.did, mail.content, body["subject"], mail.comment)
    await call.services.operator.accounts.send_mail(mail, _order(call))
    return {"sent": True}


@routes.method("com.atproto.admin.updateAccountHandle", auth=Auth.ADMIN, subject=ACCOUNT)
async def update_account_handle(call: Call) -> None:
    """Give an account another handle; reserved names are allowed (ACC-48)."""
    body = _body(call)
    account = await call.services.accounts.lookup(body["did"])
    if account is None:
        raise subject_not_found()
    await call.services.handle_change.change(account.aid, body["handle"], order=_order(call))


@routes.method("com.atproto.admin.updateAccountSigningKey", auth=Auth.ADMIN, subject=ACCOUNT)
async def update_account_signing_key(call: Call) -> None:
    """Give an account the signing key that was reserved for its DID (ID-72)."""
    body = _body(call)
    await call.services.key_rotation.rotate(body["did"], body["signingKey"], order=_order(call))


@routes.method("com.atproto.admin.updateAccountEmail", auth=Auth.ADMIN, subject=ACCOUNT_GIVEN)
async def update_account_email(call: Call) -> None:
    """Give an account another mail address, not confirmed (ACC-48)."""
    body = _body(call)
    name: str = body["account"]
    name = name if name.startswith("did:") else name.lower()
    try:
        await call.services.operator.accounts.set_email(name, body["email"], _order(call))
    except RequestError as error:
        if error.name == "NotFound":
            raise RequestError("InvalidRequest", f"Account does not exist: {name}") from error
        raise


@routes.method("com.atproto.admin.updateAccountPassword", auth=Auth.ADMIN, subject=ACCOUNT)
async def update_account_password(call: Call) -> None:
    """Set the password of an account and end its sessions (ACC-32, XRPC-26)."""
    body = _body(call)
    await call.services.operator.accounts.set_password(body["did"], body["password"], _order(call))


@routes.method("com.atproto.admin.deleteAccount", auth=Auth.ADMIN, subject=ACCOUNT)
async def delete_account(call: Call) -> None:
    """Delete an account for good (ACC-46)."""
    await call.services.operator.moderation.delete_account(Did(_body(call)["did"]), _order(call))


def _order(call: Call, note: str | None = None) -> Order:
    return order_of(call.principal, note=note)


def _body(call: Call) -> dict[str, Any]:
    """The input, which the lexicon has found to be an object."""
    return cast("dict[str, Any]", call.input)


def _applied(attribute: dict[str, Any] | None) -> bool | None:
    return None if attribute is None else bool(attribute["applied"])


def _record(uri: str, cid: Cid | None) -> RecordSubject:
    try:
        parsed: AtUri = parse_at_uri(uri)
    except InvalidSyntax as error:
        raise RequestError("InvalidRequest", f"Invalid uri: {error}") from error
    if parsed.collection is None or parsed.rkey is None:
        raise RequestError("InvalidRequest", "The uri of a record has a collection and a key")
    if not parsed.authority.startswith("did:"):
        raise subject_not_found()
    return RecordSubject(Did(parsed.authority), f"{parsed.collection}/{parsed.rkey}", cid)


def _cid(text: str) -> Cid:
    try:
        return parse_cid(text)
    except InvalidCid as error:
        raise RequestError("InvalidRequest", f"Invalid cid: {error}") from error


def _status(subject: dict[str, Json], state: SubjectState) -> Json:
    takedown: dict[str, Json] = {"applied": state.takedown_ref is not None}
    if state.takedown_ref is not None:
        takedown["ref"] = state.takedown_ref
    answer: dict[str, Json] = {"subject": subject, "takedown": takedown}
    if state.is_deactivated is not None:
        answer["deactivated"] = {"applied": state.is_deactivated}
    return answer


def _page(name: str, entries: list[Json], cursor: str | None) -> Json:
    answer: dict[str, Json] = {name: entries}
    if cursor is not None:
        answer["cursor"] = cursor
    return answer
