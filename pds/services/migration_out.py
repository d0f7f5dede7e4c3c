"""The steps of a move to another host, by its public calls alone; the mirror of `migration_in`.

This host is the source now: it makes the service token, sends what it holds, signs the operation
itself (the order of the operator, or the owner's password, is the consent), and deactivates the
account here when it is active there. The other host is asked what it has, so that a move that was
cut off goes on with what is missing.

Spec: (ACC-43, ACC-57, ACC-59, ACC-63)
"""

from typing import Any, Final

from pds.errors import NotResolvable, RemoteError, RequestError
from pds.net.xrpc_client import XrpcRejected
from pds.protocol.car import MEDIA_TYPE
from pds.protocol.plc import PDS_SERVICE_ID, SIGNING_KEY_ID, PlcError, check_limits, parse_operation
from pds.protocol.plc import sign_operation as sign
from pds.services.method_policy import CREATE_ACCOUNT
from pds.services.migration_blobs import copy_out, count_held
from pds.services.migration_identity import Wanted, make_wanted_update, plan_keys
from pds.services.migration_problems import Code, MoveProblem, waits_for
from pds.services.migration_session import read_tokens
from pds.services.migration_state import Step
from pds.services.migration_work import Given, Work
from pds.services.preferences import DECLARED_AGE

MAX_ROUNDS: Final = 5


async def open_account(work: Work, given: Given) -> None:
    """Make the account there, or sign in to the one that an attempt before has made."""
    state = work.state
    answer = await work.host.query("com.atproto.server.describeServer")
    other_did = answer.get("did")
    if not isinstance(other_did, str) or not other_did.startswith("did:"):
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"{work.host.name} does not say who it is",
            "Check the address of the new host",
        )
    state.other_did = other_did
    if given.password is None:
        raise waits_for(
            Code.PASSWORD_NEEDED,
            "The account needs a password at the new host",
            "Start the move again and give one",
        )
    try:
        await _create(work, given, other_did)
    except XrpcRejected as refused:
        try:
            await work.host.log_in(work.did, given.password, given.auth_factor_token)
        except (MoveProblem, RemoteError):
            raise MoveProblem(
                Code.ACCOUNT_REFUSED,
                f"{work.host.name} did not make the account: {refused.message or refused.error}",
                "Start the move again with another handle, address, password or invite code",
            ) from refused


async def _create(work: Work, given: Given, other_did: str) -> None:
    state = work.state
    token = await work.parts.service_tokens.mint(work.did, aud=other_did, lxm=CREATE_ACCOUNT)
    asked: dict[str, Any] = {
        "did": work.did,
        "handle": state.handle,
        "email": state.email,
        "password": given.password,
    }
    if given.invite_code:
        asked["inviteCode"] = given.invite_code
    answer = await work.host.procedure_with(token, "com.atproto.server.createAccount", asked)
    tokens = read_tokens(answer)
    if answer.get("did") != work.did or tokens is None:
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"{work.host.name} made another account than it was asked for",
            "Tell that host's operator",
        )
    await work.host.use_tokens(tokens)


async def log_in(work: Work, given: Given) -> None:
    """Open a new session there, if a password was given."""
    if given.password is not None:
        await work.host.log_in(work.did, given.password, given.auth_factor_token)


async def copy_repo(work: Work) -> None:
    """Send the whole repo, unless the other host has had this commit."""
    if await _is_open_there(work):
        return
    await work.host.check_session()
    _, rev = await work.parts.exports.head(work.did, principal=work.owner)
    if work.state.copied_rev == rev:
        return
    try:
        async with work.parts.exports.repo(work.did, principal=work.owner) as chunks:
            await work.host.send("com.atproto.repo.importRepo", chunks, media_type=MEDIA_TYPE)
    except XrpcRejected as error:
        raise MoveProblem(
            Code.REPO_REFUSED,
            f"{work.host.name} did not take the repo: {error.message or error.error}",
            "Ask that host's operator: imports may be off there, or the repo too large",
        ) from error
    work.state.copied_rev = rev
    await count_held(work)


async def copy_blobs(work: Work) -> None:
    """Send what the other host misses."""
    await work.host.check_session()
    await copy_out(work)


async def copy_preferences(work: Work) -> None:
    """Send the preferences."""
    items = [
        item
        for item in await work.parts.preferences.get(work.owner)
        if isinstance(item, dict) and item.get("$type") != DECLARED_AGE
    ]
    try:
        await work.host.procedure("app.bsky.actor.putPreferences", {"preferences": items})
    except XrpcRejected as error:
        work.state.warn(f"Preferences were not copied: {error.message or error.error}")
        return
    work.state.preferences = len(items)


async def approve(work: Work) -> None:
    """Our key signs, so nobody waits; else the owner's own key has to, or the owner publishes."""
    state = work.state
    if state.operation is not None:
        return
    wanted = await _ask_wanted(work)
    if not work.is_plc:
        await _await_document(work, wanted)
        return
    last = await work.parts.plc.get_last_op(work.did)
    current = () if last.state is None else last.state.rotation_keys
    state.keys = plan_keys(current, leaving=_our_keys(work), coming=wanted.rotation_keys).to_json()
    if work.parts.rotation_signer.public_key.did_key not in current:
        raise waits_for(
            Code.PLC_TOKEN_NEEDED,
            "Everything is copied. This server is none of the rotation keys of the account",
            "Give an operation that a rotation key of yours has signed",
        )


def _our_keys(work: Work) -> frozenset[str]:
    if work.state.keeps_old_keys:
        return frozenset()
    keys = (work.parts.recovery_did_key, work.parts.rotation_signer.public_key.did_key)
    return frozenset(key for key in keys if key)


async def _ask_wanted(work: Work) -> Wanted:
    """Ask the new host what the identity shall say of it."""
    answer = await work.host.query_as_owner("com.atproto.identity.getRecommendedDidCredentials")
    methods, services = answer.get("verificationMethods"), answer.get("services")
    key = methods.get(SIGNING_KEY_ID) if isinstance(methods, dict) else None
    service = services.get(PDS_SERVICE_ID) if isinstance(services, dict) else None
    endpoint = service.get("endpoint") if isinstance(service, dict) else None
    keys = answer.get("rotationKeys") or []
    if (
        not isinstance(key, str)
        or not isinstance(endpoint, str)
        or not isinstance(keys, list)
        or not all(isinstance(entry, str) for entry in keys)
    ):
        raise MoveProblem(
            Code.OTHER_HOST_FAULTY,
            f"{work.host.name} does not say what the identity shall be",
            "Tell that host's operator",
        )
    return Wanted(
        rotation_keys=tuple(keys),
        handle=work.state.handle,
        signing_key=key,
        endpoint=endpoint,
    )


async def _await_document(work: Work, wanted: Wanted) -> None:
    work.state.document = {
        "alsoKnownAs": [f"at://{wanted.handle}"],
        "verificationMethods": {SIGNING_KEY_ID: wanted.signing_key},
        "services": {PDS_SERVICE_ID: wanted.endpoint},
    }
    await work.parts.resolver.forget(work.did)
    document = await work.parts.resolver.resolve_did(work.did, refresh=True)
    key = document.signing_key
    is_there = document.pds_endpoint == wanted.endpoint.rstrip("/")
    if not is_there or key is None or key.did_key != wanted.signing_key:
        raise waits_for(
            Code.DOCUMENT_NEEDED,
            f"Everything is copied. The document of {work.did} does not name the new host yet",
            "Publish what is shown, keep what else is in yours, then go on",
        )


async def catch_up(work: Work) -> None:
    """Send what was written here meanwhile."""
    for _ in range(MAX_ROUNDS):
        if await _is_open_there(work):
            return
        before = work.state.copied_rev
        await copy_repo(work)
        if work.state.copied_rev == before:
            return
        await copy_out(work)
        await work.save()


async def change_identity(work: Work) -> None:
    """Sign the operation and have the new host submit it."""
    if work.is_plc:
        await _switch(work)
    else:
        await _await_document(work, await _ask_wanted(work))
    await work.parts.resolver.forget(work.did)
    if work.switched_at is None:
        work.switched_at = work.parts.clock.now_us()


async def _switch(work: Work) -> None:
    parts, state = work.parts, work.state
    log = await parts.plc.get_audit_log(work.did)
    if state.operation is not None:
        signed = parse_operation(state.operation)
        if any(entry.operation.cid == signed.cid for entry in log.active):
            return
    last = log.last
    if last is None:
        raise MoveProblem(
            Code.OPERATION_REFUSED, "The directory does not know the identity", "It cannot be moved"
        )
    if state.operation is None or parse_operation(state.operation).prev != last.cid:
        state.operation = await _sign(work, last)
        await work.save()
    try:
        await work.host.procedure(
            "com.atproto.identity.submitPlcOperation", {"operation": state.operation}
        )
    except XrpcRejected as error:
        operation = parse_operation(state.operation)
        if await parts.plc.has_operation(work.did, operation):
            return
        state.operation, work.step = None, Step.APPROVE
        raise MoveProblem(
            Code.OPERATION_REFUSED,
            f"{work.host.name} did not submit the operation: {error.message or error.error}",
            "Go on in a while; the account is as it was",
        ) from error


async def _sign(work: Work, last: Any) -> dict[str, Any]:
    """Return the operation; it names what the new host asked for, and keeps what is the owner's."""
    wanted = await _ask_wanted(work)
    current = () if last.state is None else last.state.rotation_keys
    if work.parts.rotation_signer.public_key.did_key not in current:
        work.step = Step.APPROVE
        raise waits_for(
            Code.PLC_TOKEN_NEEDED,
            "The operation that was given does not follow the newest one",
            "Sign another with a rotation key of yours",
        )
    plan = plan_keys(current, leaving=_our_keys(work), coming=wanted.rotation_keys)
    work.state.keys = plan.to_json()
    try:
        operation = sign(make_wanted_update(last, wanted, plan.keys), work.parts.rotation_signer)
        check_limits(operation)
    except PlcError as error:
        raise MoveProblem(
            Code.OPERATION_REFUSED,
            f"What {work.host.name} wants the identity to say is not valid: {error}",
            "Tell that host's operator",
        ) from error
    return operation.to_json()


async def activate(work: Work) -> None:
    """Send what was written until the switch, and open the account there."""
    try:
        await catch_up(work)
    except (RemoteError, MoveProblem) as error:
        work.state.warn(f"What was written last may be missing at {work.host.name}: {error}")
    try:
        await work.host.procedure("com.atproto.server.activateAccount")
    except XrpcRejected as error:
        raise MoveProblem(
            Code.ACTIVATION_REFUSED,
            f"{work.host.name} did not activate the account: {error.message or error.error}",
            "Go on in a while: that host may not have seen the new identity yet",
            is_passing=True,
        ) from error
    if work.switched_at is not None and work.state.paused_ms is None:
        work.state.paused_ms = max(work.parts.clock.now_us() - work.switched_at, 0) // 1000


async def leave(work: Work) -> None:
    """Deactivate the account here; it is kept, and can come back."""
    if not work.state.leaves_old:
        return
    try:
        await work.parts.lifecycle.deactivate(work.aid)
    except RequestError as error:
        work.state.warn(f"The account was not deactivated here: {error.message}")
        return
    work.state.has_left = True


async def watch(work: Work) -> None:
    """See whether relays know the account at its new host."""
    sights = await work.parts.watch.look(work.did, rev=None, handle=work.state.handle)
    work.state.seen_by = [sight.to_json() for sight in sights]
    for sight in sights:
        if not sight.is_seen:
            work.state.warn(
                f"{sight.service} does not show the account yet ({sight.detail}). The new host has"
                " to announce it"
            )


async def undo(work: Work) -> None:
    """Leave the account here; the empty one there is that host's to forget."""
    if work.switched_at is not None:
        raise MoveProblem(
            Code.TOO_LATE,
            "The identity names the new host already",
            "Go on with the move, and move back from there",
        )
    if work.state.operation is not None and work.is_plc:
        operation = parse_operation(work.state.operation)
        if await work.parts.plc.has_operation(work.did, operation):
            raise MoveProblem(
                Code.TOO_LATE,
                "The identity names the new host already",
                "Go on with the move, and move back from there",
            )
    work.state.warn(f"The unfinished account at {work.host.name} is left to that host")


async def _is_open_there(work: Work) -> bool:
    """Whether the account is active at the new host: nothing may be imported there any more."""
    try:
        answer = await work.host.query_as_owner("com.atproto.server.checkAccountStatus")
    except (XrpcRejected, NotResolvable):
        return False
    return answer.get("activated") is True and answer.get("validDid") is True
