"""The steps of a move to this host. Each may be cut off anywhere and done again.

What a step has done is read off the rows and the directory, not off a note of it: an account that
is there is not made again, blobs that are here are not fetched again, an operation that the
directory has is not sent again. At the other host nothing is changed before the account is active
here; until then it may be in use, and what is written there is caught up with.

Spec: (ACC-20, ACC-21, ACC-24, ACC-40, ACC-41, ACC-50, ACC-54, ACC-58, ACC-59, ACC-63)
"""

from collections.abc import AsyncIterator
from typing import Any, Final

from pds.errors import Rejected, RemoteError, RequestError
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.data import Json
from pds.protocol.diddoc import render_web_document
from pds.protocol.keys import parse_did_key
from pds.protocol.plc import PDS_SERVICE_ID, PDS_SERVICE_TYPE, SIGNING_KEY_ID
from pds.services import migration_sign_in
from pds.services.accounts import AccountRequest
from pds.services.audit import Order
from pds.services.import_check import ImportOutdated
from pds.services.method_policy import CREATE_ACCOUNT
from pds.services.migration_blobs import copy_in, count_held
from pds.services.migration_identity import (
    Wanted,
    check_signed,
    make_wanted_update,
    plan_keys,
    to_request,
)
from pds.services.migration_problems import Code, MoveProblem, waits_for
from pds.services.migration_restore import restore_identity
from pds.services.migration_session import Permission
from pds.services.migration_state import Step
from pds.services.migration_work import ACTOR, Given, Work
from pds.services.preferences import DECLARED_AGE, PERSONAL_DETAILS, check_preferences
from pds.services.principal import Principal
from pds.store.accounts import Account
from pds.store.moves import count_switched_moves
from pds.store.repo_staging import ImportLost, ImportUnderWay

MAX_ROUNDS: Final = 5
"""Looks at the source before the switch: who writes without a pause is switched all the same."""
HOUR_US: Final = 3600 * 1_000_000
UPSTREAM: Final = frozenset({"UpstreamFailure", "RateLimitExceeded"})


# The account


async def open_account(work: Work, given: Given) -> None:
    """Log in there, show who asks, and have the account here: deactivated (ACC-21, ACC-24)."""
    existing = await work.parts.accounts.lookup(work.did)
    if existing is not None and existing.deactivated_at is None:
        raise MoveProblem(
            Code.ALREADY_HERE, "The account is active on this host", "There is nothing to move"
        )
    await log_in(work, given)
    await _learn_email(work)
    principal = await _prove(work, given)
    if existing is None:
        aid = await _create(work, given, principal)
    else:
        aid = await _adopt(work, given, existing, principal)
    work.state.aid = aid


async def log_in(work: Work, given: Given) -> None:
    """Open a session at the other host, if a password was given; it is not kept.

    By OAuth the owner has to be waited for, unless there is a session that still is good.
    """
    if given.uses_oauth and not await has_live_session(work):
        await migration_sign_in.begin(work, given)
    if given.password is None:
        return
    login = await work.host.log_in(
        work.did, given.password, given.auth_factor_token, handle=work.state.old_handle
    )
    if work.state.email is None:
        work.state.email = login.email


async def has_live_session(work: Work) -> bool:
    """Whether the other host still answers in the session."""
    if not work.host.has_session:
        return False
    try:
        await work.host.check_session()
    except (MoveProblem, Rejected):
        return False
    return True


async def _learn_email(work: Work) -> None:
    if work.state.email is None and work.host.allows(Permission.EMAIL):
        email = (await work.host.query_as_owner("com.atproto.server.getSession")).get("email")
        work.state.email = email if isinstance(email, str) else None


async def _prove(work: Work, given: Given) -> Principal:
    """Return the holder of the DID's key, by a service token of the other host (ACC-20)."""
    token = given.service_token
    if token is None:
        if not work.host.allows(Permission.VOUCH):
            raise waits_for(
                Code.LOGIN_NEEDED,
                f"{work.host.name} has to vouch for the account",
                "Sign in there and allow it, or give the password of the account there, or a"
                " service token for"
                f" {CREATE_ACCOUNT} at {work.parts.service_did}",
            )
        answer = await work.host.query_as_owner(
            "com.atproto.server.getServiceAuth", aud=work.parts.service_did, lxm=CREATE_ACCOUNT
        )
        token = str(answer.get("token"))
    try:
        principal = await work.parts.service_tokens.authenticate(token, lxm=CREATE_ACCOUNT)
    except RequestError as error:
        raise MoveProblem(
            Code.OTHER_HOST_REFUSED,
            f"The service token is not good: {error.message}",
            "Make a new service token; each works once, and most for a minute only",
        ) from error
    if principal.did != work.did:
        raise MoveProblem(
            Code.OTHER_HOST_REFUSED,
            "The service token is that of another account",
            f"Make one for {work.did}",
        )
    return principal


async def _create(work: Work, given: Given, principal: Principal) -> int:
    parts, state = work.parts, work.state
    if state.email is None:
        raise waits_for(Code.EMAIL_NEEDED, "The account needs a mail address", "Give one (--email)")
    if given.new_password is None:
        raise waits_for(
            Code.PASSWORD_NEEDED,
            "The account needs a password on this host",
            "Start the move again and give one",
        )
    code = given.invite_code
    if code is None and state.by_operator and parts.invite_required:
        made = await parts.invites.create(
            code_count=1, use_count=1, order=Order(ACTOR, f"move of {work.did}")
        )
        code = made[0].codes[0]
    try:
        view = await parts.accounts.create(
            AccountRequest(
                handle=str(state.handle),
                email=state.email,
                password=given.new_password,
                did=work.did,
                invite_code=code,
            ),
            principal,
        )
    except RequestError as error:
        raise MoveProblem(
            Code.ACCOUNT_REFUSED,
            f"The account cannot be made here: {error.message}",
            "Start the move again with another handle, address, password or invite code",
        ) from error
    if view.tokens is not None:
        await parts.sessions.logout(view.tokens.refresh)
    account = await parts.accounts.lookup(work.did)
    if account is None:
        raise MoveProblem(Code.OUR_FAULT, "The account is gone again", "Start the move again")
    return account.aid


async def _adopt(work: Work, given: Given, account: Account, principal: Principal) -> int:
    """Go on with an account that is here: of an attempt before, or of an earlier stay (ACC-24).

    One that was opened since this move began, and was never active, is ours only if it has our
    password. Who else can sign for the DID could have opened it, to have a way in later: through
    its password, its address, its app passwords. So it makes way for a new one.
    """
    parts = work.parts
    is_of_this_move = account.created_at >= work.row.created_at and account.delete_after is not None
    if given.new_password is None:
        raise waits_for(
            Code.PASSWORD_NEEDED,
            "The account is on this host, not active"
            if is_of_this_move
            else "The account has been here before",
            "Give the password that it has on this host",
        )
    try:
        await parts.sessions.check_password(work.did, given.new_password)
    except RequestError as error:
        if is_of_this_move and error.status == 401:
            order = Order(ACTOR, f"move of {work.did}: opened under another password")
            await parts.moderation.delete_account(work.did, order)
            return await _create(work, given, principal)
        raise waits_for(
            Code.PASSWORD_NEEDED,
            f"The account has been here before, and the password is not its: {error.message}",
            "Give the password that it has on this host, or set another with pds account"
            " reset-password",
        ) from error
    if is_of_this_move:
        return account.aid
    work.state.was_here = True
    if account.handle is not None:
        work.state.handle = account.handle
    return account.aid


# What it holds


async def copy_repo(work: Work) -> None:
    """Take the repo over: all of it, or what is new since the last time (ACC-54)."""
    if await _is_active(work):
        return
    state, began = work.state, work.parts.clock.now_us()
    _, rev = await work.host.get_latest(work.did)
    if state.copied_rev == rev:
        state.looked_at = began
        return
    await _learn_source_key(work)
    try:
        await _import(work, state.copied_rev, rev)
    except RequestError as error:
        if state.copied_rev is None or isinstance(error, (ImportLost, ImportUnderWay)):
            raise _repo_refused(error) from error
        await _import_again(work, rev)
    state.copied_rev, state.looked_at = rev, began
    await count_held(work)


async def _learn_source_key(work: Work) -> None:
    """Note by which key the old host signs: the document of a did:web forgets it at the switch."""
    if work.is_plc or work.state.source_key is not None:
        return
    key = (await work.parts.resolver.resolve_did(work.did)).signing_key
    work.state.source_key = None if key is None else key.did_key


async def _import_again(work: Work, rev: str) -> None:
    """Without the difference: what is here is no longer what it is a difference to."""
    try:
        await _import(work, None, rev)
    except RequestError as error:
        raise _repo_refused(error) from error


async def _import(work: Work, since: str | None, rev: str) -> None:
    """Import what there is, and that it is as new as the host says: some send from a cache."""
    limit = work.parts.settings.repo_bytes
    async with work.host.open_repo(work.did, since=since, max_bytes=limit) as chunks:
        await work.parts.repo_imports.import_repo(
            work.owner,
            _counted(work, chunks),
            former_key=work.state.source_key,
            min_rev=rev,
        )


async def _counted(work: Work, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        work.state.repo_bytes += len(chunk)
        yield chunk


def _repo_refused(error: RequestError) -> MoveProblem:
    is_passing = isinstance(error, (ImportLost, ImportOutdated, ImportUnderWay))
    if is_passing or error.status >= 408:
        return MoveProblem(
            Code.BUSY,
            f"The repo cannot be taken in now: {error.message}",
            "Go on in a while",
            is_passing=True,
        )
    return MoveProblem(
        Code.REPO_REFUSED,
        f"The repo that the other host sent is not good: {error.message}",
        "Tell that host's operator; a backup of the repo may be imported instead",
    )


async def copy_blobs(work: Work) -> None:
    """Fetch what is missing."""
    await copy_in(work)


async def copy_preferences(work: Work) -> None:
    """Take the preferences over, all that this host can keep."""
    state = work.state
    if not work.host.allows(Permission.PREFERENCES):
        state.warn(
            "Preferences were not copied: the other host gives them to a session only. Put them"
            " here with an app that copies them, or set them anew"
        )
        return
    answer = await work.host.query_as_owner("app.bsky.actor.getPreferences")
    given = answer.get("preferences")
    items: list[Json] = given if isinstance(given, list) else []
    kinds = {item.get("$type") for item in items if isinstance(item, dict)}
    if DECLARED_AGE in kinds and PERSONAL_DETAILS not in kinds:
        state.warn(
            "The birth date was not copied: the other host keeps it from sign-ins without the"
            " password. Set it anew in the app"
        )
    kept = [item for item in items if _is_keepable(item)]
    if len(kept) < len(items):
        state.warn(f"{len(items) - len(kept)} preferences are of no kind that this host keeps")
    try:
        await work.parts.preferences.put(work.owner, kept)
    except RequestError as error:
        state.warn(f"Preferences were not copied: {error.message}")
        return
    state.preferences = len(kept)


def _is_keepable(item: Json) -> bool:
    try:
        check_preferences([item], is_full=True)
    except RequestError:
        return False
    return True


# The switch


async def approve(work: Work) -> None:
    """Wait until the owner lets the identity be changed; asked last, as the code is short-lived."""
    state = work.state
    if state.operation is not None or work.secrets.plc_token is not None:
        return
    if not work.is_plc:
        await _await_document(work)
        return
    await show_keys(work)
    if work.host.allows(Permission.SIGN):
        raise waits_for(
            Code.PLC_TOKEN_NEEDED,
            f"Everything is copied. {work.host.name} signs the change of the identity with a code"
            " that it mails to the owner",
            "Ask for the code, and give it within 15 minutes; until then the old host stays in use",
        )
    raise waits_for(
        Code.PLC_TOKEN_NEEDED,
        "Everything is copied. Without a session that allows it the other host signs nothing",
        "Log in there (start the move again with the password), or give an operation that a"
        " rotation key of yours has signed",
    )


async def show_keys(work: Work) -> None:
    """Note what becomes of the rotation keys, for the owner to see before the code is given."""
    last = await work.parts.plc.get_last_op(work.did)
    if last.state is None:
        raise MoveProblem(
            Code.OPERATION_REFUSED, "The identity was ended by a tombstone", "It cannot be moved"
        )
    credentials = await work.parts.plc_operations.recommend(work.aid)
    leaving = await _leaving_keys(work)
    plan = plan_keys(
        last.state.rotation_keys, leaving=leaving, coming=credentials.rotation_keys or ()
    )
    work.state.keys = plan.to_json()


async def _leaving_keys(work: Work) -> frozenset[str]:
    """Return the keys of the host that is left; none if they shall stay or it does not say."""
    if work.state.keeps_old_keys or not work.host.has_session:
        return frozenset()
    try:
        answer = await work.host.query_as_owner("com.atproto.identity.getRecommendedDidCredentials")
    except XrpcRejected:
        return frozenset()  # A host that has no such method: its keys stay.
    keys = answer.get("rotationKeys")
    return (
        frozenset(key for key in keys if isinstance(key, str))
        if isinstance(keys, list)
        else (frozenset())
    )


async def _await_document(work: Work) -> None:
    """A did:web is changed by its owner: show the document, and see if it is there (ACC-58)."""
    account = await work.account()
    credentials = await work.parts.plc_operations.recommend(work.aid)
    work.state.document = render_web_document(
        work.did,
        services={PDS_SERVICE_ID: (PDS_SERVICE_TYPE, credentials.endpoint)},
        keys={SIGNING_KEY_ID: parse_did_key(credentials.signing_key)},
        also_known_as=credentials.also_known_as,
    )
    try:
        await work.parts.identities.check(account)
    except RequestError as error:
        raise waits_for(
            Code.DOCUMENT_NEEDED,
            f"Everything is copied. The document of {work.did} does not name this host yet:"
            f" {error.message}",
            "Publish the document that is shown, keep what else is in yours, then go on",
        ) from error


async def request_token(work: Work) -> None:
    """Have the other host mail the code."""
    await work.host.procedure("com.atproto.identity.requestPlcOperationSignature")
    work.state.token_requested_at = work.parts.clock.now_us()


async def catch_up(work: Work) -> None:
    """Take over what was written at the old host meanwhile, until nothing is new."""
    for _ in range(MAX_ROUNDS):
        if await _is_active(work):
            return
        before = work.state.copied_rev
        await copy_repo(work)
        if work.state.copied_rev == before:
            return
        await copy_in(work)
        await work.save()


async def change_identity(work: Work) -> None:
    """Have the operation signed and submit it; from here on this host is the account's."""
    await pace(work)
    if not work.is_plc:
        await _await_document(work)
    else:
        operation = work.state.operation or await _get_signed(work)
        await _submit(work, operation)
    if work.switched_at is None:
        work.switched_at = work.parts.clock.now_us()


async def pace(work: Work) -> None:
    """Keep below what relays take from one host in an hour."""
    if work.switched_at is not None or work.state.operation is not None:
        return
    now_us = work.parts.clock.now_us()
    count, first_at = await work.parts.engine.read(
        "move.pace", count_switched_moves, now_us - HOUR_US
    )
    if first_at is not None and count >= work.parts.settings.switches_per_hour:
        wait_s = (first_at + HOUR_US - now_us) / 1_000_000 + 1
        raise MoveProblem(
            Code.PACED,
            f"{count} accounts have moved in within an hour, and relays take no more",
            "Nothing has to be done",
            is_passing=True,
            after_s=wait_s,
        )


async def _get_signed(work: Work) -> dict[str, Any]:
    """Have the other host sign the operation that we built, and compare."""
    token = work.secrets.plc_token
    if token is None:
        raise _back_to_approval(work, Code.PLC_TOKEN_NEEDED, "There is no code")
    parts, state = work.parts, work.state
    account = await work.account()
    last = await parts.plc.get_last_op(work.did)
    credentials = await parts.plc_operations.recommend(work.aid)
    plan = plan_keys(
        () if last.state is None else last.state.rotation_keys,
        leaving=await _leaving_keys(work),
        coming=credentials.rotation_keys or (),
    )
    wanted = Wanted(
        rotation_keys=plan.keys,
        handle=account.handle,
        signing_key=credentials.signing_key,
        endpoint=credentials.endpoint,
    )
    fields = make_wanted_update(last, wanted, plan.keys)
    try:
        answer = await work.host.procedure(
            "com.atproto.identity.signPlcOperation", to_request(fields, token)
        )
    except XrpcRejected as error:
        raise _back_to_approval(
            work,
            Code.PLC_TOKEN_REFUSED,
            f"{work.host.name} did not sign: {error.message or error.error}",
        ) from error
    operation = check_signed(answer.get("operation"), fields, work.host.name).to_json()
    state.keys, state.operation = plan.to_json(), operation
    work.secrets.plc_token = None
    await work.save()  # The code works once: without the operation it would be lost.
    return operation


def _back_to_approval(work: Work, code: Code, message: str) -> MoveProblem:
    work.secrets.plc_token = None
    work.state.operation = None
    work.step = Step.APPROVE
    return waits_for(code, message, "Ask for a new code and give it within 15 minutes")


async def _submit(work: Work, operation: dict[str, Any]) -> None:
    try:
        warnings = await work.parts.plc_operations.submit(work.aid, operation)
    except RequestError as error:
        if error.name in UPSTREAM or "under way" in error.message:
            raise MoveProblem(
                Code.DIRECTORY_UNREACHABLE,
                f"The identity was not changed yet: {error.message}",
                "Go on in a while",
                is_passing=True,
            ) from error
        problem = _back_to_approval(
            work, Code.OPERATION_REFUSED, f"The operation was refused: {error.message}"
        )
        raise problem from error
    for warning in warnings:
        work.state.warn(warning)


async def leave(work: Work) -> None:
    """Deactivate the account at the old host; a failure is told, the move is done all the same."""
    state = work.state
    if not state.leaves_old or state.has_left:
        return
    if not work.host.allows(Permission.LEAVE):
        why = "the sign-in does not allow it" if work.host.has_session else "there was no session"
        state.warn(f"Deactivate the account at {work.host.name} yourself: {why}")
        return
    try:
        await work.host.procedure("com.atproto.server.deactivateAccount", {})
    except (XrpcRejected, MoveProblem) as error:
        if not await _is_gone(work):  # It may have been done, and the session ended with it.
            state.warn(f"Deactivate the account at {work.host.name} yourself: {error}")
            return
    state.has_left = True


async def _is_gone(work: Work) -> bool:
    """Whether the old host says in public that the account is not active there."""
    try:
        answer = await work.host.query("com.atproto.sync.getRepoStatus", did=work.did)
    except RemoteError:
        return False
    return answer.get("active") is False


async def watch(work: Work) -> None:
    """See whether the network sees the account."""
    account = await work.account()
    _, rev = await work.parts.exports.head(work.did, principal=work.owner)
    sights = await work.parts.watch.look(work.did, rev=rev, handle=account.handle)
    work.state.seen_by = [sight.to_json() for sight in sights]
    for sight in sights:
        if not sight.is_seen:
            work.state.warn(
                f"{sight.service} does not show the account yet ({sight.detail}). If that lasts,"
                " run pds event request-crawl, and write a record"
            )


async def _is_active(work: Work) -> bool:
    return (await work.account()).deactivated_at is None


# Undo


async def undo(work: Work) -> None:
    """Leave everything as it was: the identity, then the staged account."""
    parts = work.parts
    account = await parts.accounts.lookup(work.did)
    if account is not None and account.deactivated_at is None:
        raise MoveProblem(
            Code.TOO_LATE,
            "The account is active here",
            "Move it back with pds migrate out",
        )
    if work.state.operation is not None and work.is_plc:
        await restore_identity(work)
    if account is None or work.state.aid != account.aid or work.state.was_here:
        return
    await parts.moderation.delete_account(work.did, Order(ACTOR, "the move was undone"))
