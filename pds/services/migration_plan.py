"""The dry run of a move: what would move, and what the owner should know before.

All of it from public answers, so that nobody has to log in to see it; nothing is changed anywhere.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import NotResolvable, ProtocolError, RemoteError, RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import Did, Handle, InvalidSyntax, parse_did, parse_handle
from pds.services.migration_host import RemoteHost
from pds.services.migration_identity import read_endpoint
from pds.services.migration_problems import Code, MoveProblem
from pds.services.migration_survey import Surveyor
from pds.services.migration_work import MigrationParts

SURVEY_TIMEOUT_S: Final = 45.0
"""A larger repo is counted as far as it comes in this time."""


@dataclass(frozen=True, slots=True)
class Traveller:
    """Who moves, and from where, as the identity says it."""

    did: Did
    handle: Handle | None
    url: str


async def find(parts: MigrationParts, name: str) -> Traveller:
    """Return who a handle or DID is, and which host has the account.

    Raises: MoveProblem.
    """
    name = name.strip().removeprefix("@")
    try:
        if name.startswith("did:"):
            did = parse_did(name)
        else:
            did = await parts.resolver.resolve_handle(parse_handle(name.lower()), refresh=True)
        document = await parts.resolver.resolve_did(did, refresh=True)
    except InvalidSyntax as error:
        raise _not_found(f"{name} is neither a handle nor a DID: {error}") from error
    except NotResolvable as error:
        raise _not_found(f"There is no account {name}: {error}") from error
    except RemoteError as error:
        raise MoveProblem(
            Code.DIRECTORY_UNREACHABLE,
            f"It could not be found out who {name} is: {error}",
            "Try again in a while",
        ) from error
    if document.pds_endpoint is None:
        raise _not_found(f"The document of {did} names no host")
    return Traveller(did, document.handle, document.pds_endpoint)


def _not_found(message: str) -> MoveProblem:
    return MoveProblem(Code.ACCOUNT_NOT_FOUND, message, "Check the handle or give the DID")


async def choose_handle(
    parts: MigrationParts, traveller: Traveller, asked: str | None
) -> tuple[str | None, str, list[str]]:
    """Return the handle to be, the kind of the present one, and the domains of the old host.

    Kinds: `own_domain` can be kept, `old_host` cannot (ACC-59), `none`.
    """
    domains = await _old_domains(parts, traveller)
    present = traveller.handle
    if present is None:
        kind = "none"
    elif any(present.endswith(domain) for domain in domains):
        kind = "old_host"
    else:
        kind = "own_domain"
    if asked is not None:
        return asked.strip().lower().removeprefix("@"), kind, domains
    if kind == "own_domain":
        return present, kind, domains
    label = "" if present is None else present.partition(".")[0]
    for domain in parts.handles.service_domains:
        if label:
            return f"{label}{domain}", kind, domains
    return None, kind, domains


async def _old_domains(parts: MigrationParts, traveller: Traveller) -> list[str]:
    """Which handles are the old host's; that must be known, or one that ends would be kept."""
    host = RemoteHost(parts.http, traveller.url)
    try:
        answer = await host.query("com.atproto.server.describeServer")
    except RemoteError as error:
        raise MoveProblem(
            Code.OTHER_HOST_UNREACHABLE,
            f"{host.name} does not say what it is: {error}",
            f"Try again when {host.name} is back; if it is gone for good, see pds rescue",
        ) from error
    found = answer.get("availableUserDomains")
    domains = found if isinstance(found, list) else []
    return [domain.lower() for domain in domains if isinstance(domain, str) and len(domain) > 1]


async def plan_in(parts: MigrationParts, name: str, handle: str | None) -> dict[str, Json]:
    """Say what would move to this host. Raises: MoveProblem."""
    traveller = await find(parts, name)
    warnings: list[str] = []
    new_handle, kind, _ = await choose_handle(parts, traveller, handle)
    plan: dict[str, Json] = {
        "did": traveller.did,
        "oldHandle": traveller.handle,
        "oldHost": traveller.url,
        "newHost": parts.public_url,
        "handle": new_handle,
        "handleKind": kind,
    }
    if kind == "old_host":
        warnings.append(
            f"{traveller.handle} belongs to the old host and cannot be kept; the account becomes"
            f" {new_handle}"
        )
    if new_handle is None:
        warnings.append("There is no handle to keep: choose one (--handle)")
    else:
        await _check_handle(parts, traveller, new_handle, warnings)
    plan["account"] = await _look_here(parts, traveller, warnings)
    plan |= await _look_at_identity(parts, traveller, warnings)
    plan |= await _look_there(parts, traveller, warnings)
    plan["warnings"] = list(warnings)
    return plan


async def _check_handle(
    parts: MigrationParts, traveller: Traveller, text: str, warnings: list[str]
) -> None:
    try:
        handle = parts.handles.parse(text)
        if parts.handles.is_ours(handle):
            parts.handles.check_ours(handle)
            holder = await parts.accounts.lookup(handle)
            if holder is not None and holder.did != traveller.did:
                warnings.append(f"The handle {handle} is taken here: choose another (--handle)")
        elif await parts.resolver.resolve_handle(handle, refresh=True) != traveller.did:
            warnings.append(f"The handle {handle} is another account's")
    except RequestError as error:
        warnings.append(f"The handle {text} cannot be had here: {error.message}")
    except RemoteError:
        warnings.append(f"The handle {text} does not lead to {traveller.did}: set its DNS record")


async def _look_here(parts: MigrationParts, traveller: Traveller, warnings: list[str]) -> str:
    account = await parts.accounts.lookup(traveller.did)
    if account is None:
        return "new"
    if account.deactivated_at is None:
        raise MoveProblem(
            Code.ALREADY_HERE, "The account is active on this host", "There is nothing to move"
        )
    warnings.append("The account is here already, deactivated: its password of this host is needed")
    return "known"


async def _look_at_identity(
    parts: MigrationParts, traveller: Traveller, warnings: list[str]
) -> dict[str, Json]:
    if not traveller.did.startswith("did:plc:"):
        warnings.append("The identity is a did:web: its owner publishes the new document")
        return {"rotationKeys": None}
    try:
        state = (await parts.plc.get_audit_log(traveller.did)).state
    except RemoteError as error:
        raise MoveProblem(
            Code.DIRECTORY_UNREACHABLE,
            f"The PLC directory does not tell about {traveller.did}: {error}",
            "Try again in a while",
        ) from error
    if state is None:
        raise _not_found(f"{traveller.did} was ended by a tombstone")
    if len(state.rotation_keys) == 1:
        warnings.append(
            "The only rotation key is the old host's: a key of your own could save the account if"
            " a host is lost"
        )
    others = sorted(set(state.services) - {"atproto_pds"})
    return {
        "rotationKeys": list(state.rotation_keys),
        "otherServices": list(others),
        "endpoint": read_endpoint(state),
    }


async def _look_there(
    parts: MigrationParts, traveller: Traveller, warnings: list[str]
) -> dict[str, Json]:
    """Count what the old host has; a host that does not answer is a warning only here."""
    host = RemoteHost(parts.http, traveller.url)
    found: dict[str, Any] = {}
    try:
        status = await host.query("com.atproto.sync.getRepoStatus", did=traveller.did)
        if status.get("active") is not True:
            warnings.append(f"The account is not active there: {str(status.get('status'))[:50]}")
    except RemoteError as error:
        warnings.append(f"{host.name} does not tell the state of the account: {error}")
    surveyor = Surveyor(max_bytes=parts.settings.repo_bytes)
    try:
        async with (
            asyncio.timeout(SURVEY_TIMEOUT_S),
            host.open_repo(
                traveller.did, since=None, max_bytes=parts.settings.repo_bytes
            ) as chunks,
        ):
            async for chunk in chunks:
                surveyor.feed(chunk)
            surveyor.finish()
    except (RemoteError, ProtocolError, TimeoutError) as error:
        warnings.append(
            f"The repo could not be counted to its end ({type(error).__name__}: {error}): the"
            " numbers are what was seen"
        )
    found |= surveyor.found.to_json()
    limit = parts.settings.blob_bytes
    if found["largestBlob"] > limit:
        warnings.append(
            f"There are blobs larger than {limit} bytes: raise PDS_MIGRATION_BLOB_LIMIT"
        )
    return {"content": found}
