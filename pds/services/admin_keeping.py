"""Orders about archives, rotation keys that people keep, the PLC watch and rescues.

Files are named by paths on the machine of the server, which reads and writes them; archives to be
read also by `s3://` addresses in the bucket of its settings. Private keys never are in an order:
what the owner's key has to sign is signed where the command runs.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pds.errors import RequestError, Unavailable
from pds.protocol.data import Json
from pds.services.admin_orders import Act, Asked
from pds.services.archive_keeping import IN_BUCKET
from pds.services.moderation import subject_not_found
from pds.services.recovery_keys import RotationKey
from pds.services.rescue import Newcomer, Sources


async def _create_archive(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    target = _path(asked, "path")
    if asked.order.is_rehearsal:
        return {"did": did, "path": str(target)}
    written = await asked.services.keeping.archives.create(
        did,
        target,
        passphrase=asked.fields.maybe_text("passphrase"),
        with_preferences=asked.fields.flag("preferences"),
    )
    return written.to_json()


async def _keep_archives(asked: Asked) -> dict[str, Json]:
    """Do now what is done on a schedule."""
    rounds = asked.services.keeping.archive_rounds
    if not rounds.settings.is_set:
        raise RequestError(
            "InvalidRequest",
            "The settings name no place for archives: set PDS_ARCHIVE_S3_BUCKET and its keys, or"
            " PDS_ARCHIVE_DIRECTORY",
        )
    if asked.order.is_rehearsal:
        raise RequestError("InvalidRequest", "This cannot be rehearsed: nothing is changed by it")
    try:
        counts = await rounds.sweep()
    except Unavailable as error:
        raise RequestError("UpstreamFailure", str(error), 502) from error
    return {**counts}


async def _import_archive(asked: Asked) -> dict[str, Json]:
    async with _sources(asked) as sources:
        arrived = await asked.services.keeping.rescue.import_archive(
            _newcomer(asked), sources, asked.order
        )
    return arrived.to_json()


async def _list_keys(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    return _keys(did, await asked.services.keeping.recovery_keys.list_keys(did))


async def _add_key(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    keys = await asked.services.keeping.recovery_keys.add(
        did,
        asked.fields.text("key"),
        replaces=asked.fields.maybe_text("replaces"),
        order=asked.order,
    )
    return _keys(did, keys)


async def _remove_key(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    keys = await asked.services.keeping.recovery_keys.remove(
        did, asked.fields.text("key"), order=asked.order
    )
    return _keys(did, keys)


async def _plan_countermand(asked: Asked) -> dict[str, Json]:
    plan = await asked.services.keeping.countermands.plan(
        await asked.did(), asked.fields.maybe_text("operation")
    )
    return plan.to_json()


async def _countermand(asked: Asked) -> dict[str, Json]:
    plan = await asked.services.keeping.countermands.carry_out(
        await asked.did(),
        cid=asked.fields.maybe_text("operation"),
        signed=asked.fields.maybe_object("signed"),
        order=asked.order,
    )
    return plan.to_json()


async def _look(asked: Asked) -> dict[str, Json]:
    """Look at one identity now, whenever it is due."""
    account = await asked.services.accounts.lookup(await asked.did())
    if account is None:
        raise subject_not_found()
    found = await asked.services.keeping.plc_watch.look_now(account.aid)
    return {"did": account.did, "operations": found}


async def _prepare_rescue(asked: Asked) -> dict[str, Json]:
    async with _sources(asked) as sources:
        prepared = await asked.services.keeping.rescue.prepare(
            _newcomer(asked),
            sources,
            owner_key=asked.fields.text("key"),
            further_keys=asked.fields.texts("furtherKeys"),
            order=asked.order,
        )
    return prepared.to_json()


async def _finish_rescue(asked: Asked) -> dict[str, Json]:
    account = await asked.services.keeping.rescue.finish(
        asked.fields.text("did"), asked.fields.maybe_object("operation"), asked.order
    )
    return {"did": account.did, "handle": account.handle, "status": account.status.value}


KEEPING_ACTS: Final[Mapping[str, Act]] = {
    "archive.create": _create_archive,
    "archive.keep": _keep_archives,
    "archive.import": _import_archive,
    "key.list": _list_keys,
    "key.add": _add_key,
    "key.remove": _remove_key,
    "rescue.look": _look,
    "rescue.plan-countermand": _plan_countermand,
    "rescue.countermand": _countermand,
    "rescue.prepare": _prepare_rescue,
    "rescue.finish": _finish_rescue,
}
"""The orders by their names."""

LONG_ORDERS: Final = frozenset(
    {"archive.create", "archive.keep", "archive.import", "rescue.prepare"}
)
"""Orders that move all of an account and may take hours."""


def _newcomer(asked: Asked) -> Newcomer:
    fields = asked.fields
    return Newcomer(
        handle=fields.text("handle"),
        email=fields.text("email"),
        password=fields.text("password"),
        did=fields.maybe_text("did"),
    )


@asynccontextmanager
async def _sources(asked: Asked) -> AsyncIterator[Sources]:
    """Have what an account comes from; an archive in a bucket is fetched for as long."""
    fields = asked.fields
    sources = Sources(
        passphrase=fields.maybe_text("passphrase"),
        repo=fields.maybe_text("repo"),
        blobs=fields.maybe_text("blobs"),
    )
    address = fields.maybe_text("archive")
    if address is None:
        yield sources
        return
    if not address.startswith(IN_BUCKET):
        address = str(_path(asked, "archive"))
    async with asked.services.keeping.kept_archives.at_hand(address) as archive:
        yield replace(sources, archive=archive)


def _path(asked: Asked, name: str) -> Path:
    path = Path(asked.fields.text(name))
    if not path.is_absolute():
        raise RequestError("InvalidRequest", f"{name} must be an absolute path on the server")
    return path


def _keys(did: str, keys: list[RotationKey]) -> dict[str, Json]:
    entries: list[Any] = [key.to_json() for key in keys]
    return {"did": did, "rotationKeys": entries}
