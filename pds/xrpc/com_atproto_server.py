"""com.atproto.server.*: describing the server, accounts, sessions, service tokens, invite codes."""

from typing import Any, Final, cast

from pds.errors import RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import format_datetime
from pds.services.accounts import AccountRequest
from pds.services.audit import order_of
from pds.services.mail_tokens import MailPurpose
from pds.services.principal import Principal
from pds.services.sessions import SessionView
from pds.xrpc.server import Allows, Auth, Call, MethodTable

routes: Final = MethodTable()


@routes.method("com.atproto.server.describeServer", auth=Auth.NONE)
async def describe_server(call: Call) -> Json:
    """Say which domains, limits and conditions this server has."""
    return call.services.server_info.describe()


@routes.method("com.atproto.server.createAccount", auth=Auth.SERVICE_OPTIONAL)
async def create_account(call: Call) -> Json:
    """Open an account, or the place for one that moves in (ACC-10, ACC-13, ACC-20)."""
    body = _body(call)
    view = await call.services.accounts.create(
        AccountRequest(
            handle=body["handle"],
            email=body.get("email"),
            password=body.get("password"),
            did=body.get("did"),
            invite_code=body.get("inviteCode"),
            recovery_key=body.get("recoveryKey"),
            has_plc_op=body.get("plcOp") is not None,
        ),
        call.principal,
    )
    answer: dict[str, Json] = {"did": view.did, "handle": view.handle, **_tokens(view)}
    if view.did_doc is not None:
        answer["didDoc"] = view.did_doc
    return answer


@routes.method("com.atproto.server.createSession", auth=Auth.NONE)
async def create_session(call: Call) -> Json:
    """Sign in (XRPC-27)."""
    body = _body(call)
    view = await call.services.sessions.login(
        body["identifier"],
        body["password"],
        allow_takendown=body.get("allowTakendown", False),
        address=call.request.remote or "",
    )
    return {**_session(view), **_tokens(view)}


@routes.method("com.atproto.server.refreshSession", auth=Auth.REFRESH)
async def refresh_session(call: Call) -> Json:
    """Exchange a refresh token for the next pair (XRPC-25)."""
    view = await call.services.sessions.refresh(call.token or "")
    return {**_session(view), **_tokens(view)}


@routes.method("com.atproto.server.getSession", auth=Auth.SESSION)
async def get_session(call: Call) -> Json:
    """Show the account of the caller."""
    return _session(await call.services.sessions.describe(_principal(call)))


@routes.method("com.atproto.server.deleteSession", auth=Auth.REFRESH, allows=Allows.ENDED)
async def delete_session(call: Call) -> None:
    """Sign out: end the whole session of a refresh token, expired or not (XRPC-25)."""
    await call.services.sessions.logout(call.token or "")


@routes.method("com.atproto.server.getServiceAuth", auth=Auth.SESSION_TAKENDOWN_OK)
async def get_service_auth(call: Call) -> Json:
    """Mint a token by which the caller's account may speak to another service (XRPC-45)."""
    params: dict[str, Any] = call.params
    token = await call.services.service_tokens.mint_for_client(
        _principal(call), aud=params["aud"], lxm=params.get("lxm"), exp=params.get("exp")
    )
    return {"token": token}


@routes.method("com.atproto.server.createAppPassword", auth=Auth.FULL)
async def create_app_password(call: Call) -> Json:
    """Make an app password and show it once (ACC-33)."""
    body = _body(call)
    new = await call.services.app_passwords.create(
        _principal(call).aid or 0, body["name"], privileged=body.get("privileged", False)
    )
    return {
        "name": new.name,
        "password": new.password,
        "createdAt": format_datetime(new.created_at),
        "privileged": new.privileged,
    }


@routes.method("com.atproto.server.listAppPasswords", auth=Auth.FULL)
async def list_app_passwords(call: Call) -> Json:
    """List the app passwords of the caller, without their secrets (ACC-33)."""
    listed = await call.services.app_passwords.list(_principal(call).aid or 0)
    return {
        "passwords": [
            {
                "name": entry.name,
                "createdAt": format_datetime(entry.created_at),
                "privileged": entry.privileged,
            }
            for entry in listed
        ]
    }


@routes.method("com.atproto.server.revokeAppPassword", auth=Auth.FULL)
async def revoke_app_password(call: Call) -> None:
    """Revoke an app password and end its sessions (XRPC-26)."""
    await call.services.app_passwords.revoke(_principal(call).aid or 0, _body(call)["name"])


@routes.method("com.atproto.server.createInviteCode", auth=Auth.ADMIN)
async def create_invite_code(call: Call) -> Json:
    """Make one invite code (ACC-26)."""
    body = _body(call)
    holder = body.get("forAccount")
    made = await call.services.invites.create(
        code_count=1,
        use_count=body["useCount"],
        for_accounts=[holder] if holder else [],
        order=order_of(call.principal),
    )
    return {"code": made[0].codes[0]}


@routes.method("com.atproto.server.createInviteCodes", auth=Auth.ADMIN)
async def create_invite_codes(call: Call) -> Json:
    """Make invite codes for several holders (ACC-26)."""
    body = _body(call)
    made = await call.services.invites.create(
        code_count=body.get("codeCount", 1),
        use_count=body["useCount"],
        for_accounts=body.get("forAccounts", []),
        order=order_of(call.principal),
    )
    return {"codes": [{"account": entry.account, "codes": list(entry.codes)} for entry in made]}


@routes.method("com.atproto.server.activateAccount", auth=Auth.FULL)
async def activate_account(call: Call) -> None:
    """Activate the account of the caller, if its identity names this host (ACC-40)."""
    await call.services.account_lifecycle.activate(_principal(call).aid or 0)


@routes.method("com.atproto.server.deactivateAccount", auth=Auth.FULL_TAKENDOWN_OK)
async def deactivate_account(call: Call) -> None:
    """Deactivate the account of the caller, until a date or for good (ACC-42)."""
    await call.services.account_lifecycle.deactivate(
        _principal(call).aid or 0, delete_after=_body(call).get("deleteAfter")
    )


@routes.method("com.atproto.server.deleteAccount", auth=Auth.NONE)
async def delete_account(call: Call) -> None:
    """Delete an account, with its password and a code from its mailbox (ACC-46)."""
    body = _body(call)
    await call.services.account_lifecycle.delete(
        body["did"],
        password=body["password"],
        code=body["token"],
        address=call.request.remote or "",
    )


@routes.method("com.atproto.server.checkAccountStatus", auth=Auth.SESSION_TAKENDOWN_OK)
async def check_account_status(call: Call) -> Json:
    """Tell how far the account of the caller is, in any state (ACC-51)."""
    report = await call.services.account_reports.get(_principal(call).aid or 0)
    return {
        "activated": report.is_activated,
        "validDid": report.is_did_valid,
        "repoCommit": str(report.commit),
        "repoRev": report.rev,
        "repoBlocks": report.blocks,
        "indexedRecords": report.records,
        "privateStateValues": 0,
        "expectedBlobs": report.expected_blobs,
        "importedBlobs": report.stored_blobs,
    }


@routes.method("com.atproto.server.reserveSigningKey", auth=Auth.NONE)
async def reserve_signing_key(call: Call) -> Json:
    """Make the key of an account that does not exist yet (ACC-15)."""
    return {"signingKey": await call.services.reserved_keys.reserve(_body(call).get("did"))}


@routes.method("com.atproto.server.getAccountInviteCodes", auth=Auth.FULL)
async def get_account_invite_codes(call: Call) -> Json:
    """List the caller's invite codes, after making those that were earned (ACC-26)."""
    params: dict[str, Any] = call.params
    listed = await call.services.invites.list_of_account(
        _principal(call).aid or 0,
        include_used=params.get("includeUsed", True),
        create_available=params.get("createAvailable", True),
    )
    return {
        "codes": [
            {
                "code": entry.code,
                "available": entry.use_count,
                "disabled": entry.disabled,
                "forAccount": entry.for_account,
                "createdBy": entry.created_by,
                "createdAt": format_datetime(entry.created_at),
                "uses": [
                    {"usedBy": use.used_by, "usedAt": format_datetime(use.used_at)}
                    for use in entry.uses
                ],
            }
            for entry in listed
        ]
    }


@routes.method("com.atproto.server.requestEmailConfirmation", auth=Auth.FULL)
async def request_email_confirmation(call: Call) -> None:
    """Mail a code that confirms the caller's address (ACC-36)."""
    await call.services.account_email.request_confirmation(_principal(call).aid or 0)


@routes.method("com.atproto.server.confirmEmail", auth=Auth.FULL)
async def confirm_email(call: Call) -> None:
    """Confirm the caller's address with the code that was sent there (ACC-36)."""
    body = _body(call)
    await call.services.account_email.confirm(
        _principal(call).aid or 0, body["email"], body["token"]
    )


@routes.method("com.atproto.server.requestEmailUpdate", auth=Auth.FULL)
async def request_email_update(call: Call) -> Json:
    """Mail a code to a confirmed address before it is changed (ACC-36, ACC-38)."""
    is_needed = await call.services.account_email.request_update(_principal(call).aid or 0)
    return {"tokenRequired": is_needed}


@routes.method("com.atproto.server.updateEmail", auth=Auth.FULL)
async def update_email(call: Call) -> None:
    """Change the caller's address (ACC-36, ACC-38)."""
    body = _body(call)
    if body.get("emailAuthFactor"):
        raise RequestError("InvalidRequest", "This server sends no codes for signing in")
    await call.services.account_email.update(
        _principal(call).aid or 0, body["email"], body.get("token")
    )


@routes.method("com.atproto.server.requestPasswordReset", auth=Auth.NONE)
async def request_password_reset(call: Call) -> None:
    """Mail a code to whoever has this address; the answer is the same for all (ACC-37)."""
    await call.services.password_reset.request(_body(call)["email"])


@routes.method("com.atproto.server.resetPassword", auth=Auth.NONE)
async def reset_password(call: Call) -> None:
    """Set a new password with a mailed code, and end all sessions (ACC-32)."""
    body = _body(call)
    await call.services.password_reset.reset(body["token"], body["password"])


@routes.method("com.atproto.server.requestAccountDelete", auth=Auth.FULL_TAKENDOWN_OK)
async def request_account_delete(call: Call) -> None:
    """Mail the code that deleteAccount asks for (ACC-36)."""
    await call.services.account_mails.request_code(
        _principal(call).aid or 0, MailPurpose.DELETE_ACCOUNT
    )


def _body(call: Call) -> dict[str, Any]:
    """The input, which the lexicon has found to be an object."""
    return cast("dict[str, Any]", call.input)


def _principal(call: Call) -> Principal:
    if call.principal is None:
        raise RequestError("AuthMissing", "Authentication Required", 401)
    return call.principal


def _session(view: SessionView) -> dict[str, Json]:
    """The account as createSession, refreshSession and getSession show it."""
    answer: dict[str, Json] = {"did": view.did, "handle": view.handle}
    if view.email is not None:
        answer["email"] = view.email
        answer["emailConfirmed"] = view.email_confirmed
    answer["active"] = view.is_active
    if not view.is_active:
        answer["status"] = view.status.value
    if view.did_doc is not None:
        answer["didDoc"] = view.did_doc
    return answer


def _tokens(view: SessionView) -> dict[str, Json]:
    if view.tokens is None:
        return {}
    return {"accessJwt": view.tokens.access, "refreshJwt": view.tokens.refresh}
