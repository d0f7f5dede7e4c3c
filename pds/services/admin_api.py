"""Everything that an operator can order by name: JSON in, JSON out.

The command line is written against `AdminApi.call` alone. With a running server the call goes over
HTTP (`web/admin_api`), without one the command has the same services in its own process
(`app/alone`): either way the same function here is run, checked and noted in the audit trail alike.

An order that changes something takes `dryRun`: it is then checked and carried out in a transaction
that is thrown away, and the answer is what would have been. Acts with effects elsewhere (creating
an account, sending a mail) are only checked.

Accounts are named by DID or handle. What needs an account and finds none answers `NotFound`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pds.errors import ProtocolError, RequestError
from pds.protocol.cid import Cid, parse_cid
from pds.protocol.data import Json
from pds.protocol.syntax import parse_at_uri
from pds.services import admin_lists
from pds.services.admin_accounts import AccountInfo, account_view, invite_view
from pds.services.admin_keeping import KEEPING_ACTS
from pds.services.admin_orders import Act, Asked, Fields
from pds.services.audit import Order, audit_view
from pds.services.hostname_orders import HOSTNAME_ACTS
from pds.services.migration_orders import MOVE_ACTS
from pds.services.moderation import (
    AccountChange,
    BlobSubject,
    Changed,
    RecordSubject,
    subject_not_found,
)
from pds.store.accounts import AccountStatus

if TYPE_CHECKING:
    from pds.services import Services

DEFAULT_LIMIT: Final = 50


class AdminApi:
    """Runs orders by name."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def call(self, name: str, values: Mapping[str, Json], *, actor: str) -> dict[str, Json]:
        """Run one order.

        Raises: RequestError `MethodNotImplemented` for an unknown name, and what the order raises.
        """
        act = ACTS.get(name)
        if act is None:
            raise RequestError("MethodNotImplemented", f"There is no order {name}", 404)
        fields = Fields(values)
        order = Order(actor, fields.maybe_text("note"), fields.flag("dryRun"))
        return await act(Asked(self._services, fields, order))


# Accounts


async def _list_accounts(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    status = fields.maybe_text("status")
    if status is not None and status not in set(AccountStatus):
        raise RequestError("InvalidRequest", f"unknown status: {status}")
    infos, cursor = await asked.services.operator.accounts.search(
        text=fields.maybe_text("text"),
        status=None if status is None else AccountStatus(status),
        cursor=fields.maybe_text("cursor"),
        limit=fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("accounts", [_account(info) for info in infos], cursor)


async def _show_account(asked: Asked) -> dict[str, Json]:
    infos = await asked.services.operator.accounts.infos([await asked.did()])
    if not infos:
        raise subject_not_found()
    return _account(infos[0]) | await asked.services.operator.lists.holdings(infos[0].account.aid)


async def _list_sessions(asked: Asked) -> dict[str, Json]:
    sessions, cursor = await asked.services.operator.lists.sessions(
        await asked.did(),
        cursor=asked.fields.maybe_text("cursor"),
        limit=asked.fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("sessions", sessions, cursor)


async def _create_account(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    return await asked.services.operator.creation.create(
        handle=fields.text("handle"),
        email=fields.text("email"),
        password=fields.maybe_text("password"),
        order=asked.order,
    )


def _changing(change: AccountChange) -> Act:
    async def act(asked: Asked) -> dict[str, Json]:
        ref = asked.fields.maybe_text("ref")
        wanted = AccountChange(
            takedown=change.takedown,
            takedown_ref=ref if change.takedown else None,
            suspended=change.suspended,
            deactivated=change.deactivated,
        )
        did = await asked.did()
        changed = await asked.services.operator.moderation.change_account(did, wanted, asked.order)
        return {"did": did, **_changed(changed)}

    return act


async def _delete_account(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    return {
        "did": did,
        "before": await asked.services.operator.moderation.delete_account(did, asked.order),
    }


async def _set_handle(asked: Asked) -> dict[str, Json]:
    account = await asked.services.accounts.lookup(await asked.did())
    if account is None:
        raise subject_not_found()
    handle = await asked.services.handle_change.change(
        account.aid, asked.fields.text("handle"), order=asked.order
    )
    return {"did": account.did, "handle": handle}


async def _rotate_key(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    key = await asked.services.key_rotation.rotate(
        did, asked.fields.maybe_text("key"), order=asked.order
    )
    if asked.order.is_rehearsal and asked.fields.maybe_text("key") is None:
        return {"did": did}  # The real one will be another.
    return {"did": did, "signingKey": key}


async def _set_email(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    await asked.services.operator.accounts.set_email(did, asked.fields.text("email"), asked.order)
    return {"did": did, "email": asked.fields.text("email").strip().lower()}


async def _set_password(asked: Asked) -> dict[str, Json]:
    did, password = await asked.did(), asked.fields.text("password")
    await asked.services.operator.accounts.set_password(did, password, asked.order)
    return {"did": did}


async def _end_sessions(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    await asked.services.operator.moderation.end_sessions(did, asked.order)
    return {"did": did}


async def _set_appview(asked: Asked) -> dict[str, Json]:
    did = await asked.did()
    choice = asked.fields.maybe_text("appview")
    before, after = await asked.services.appview_choices.set(
        did, choice, asked.order, proxy=asked.services.proxy
    )
    return {
        "did": did,
        "before": {"appview": before},
        "after": {"appview": after},
        "changed": before != after,
    }


def _inviting(is_allowed: bool) -> Act:
    async def act(asked: Asked) -> dict[str, Json]:
        did = await asked.did()
        await asked.services.operator.accounts.set_inviting(did, asked.order, is_allowed=is_allowed)
        return {"did": did, "invitesDisabled": not is_allowed}

    return act


# Invite codes


async def _create_invites(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    made = await asked.services.invites.create(
        code_count=fields.number("count", 1),
        use_count=fields.number("uses", 1),
        for_accounts=fields.texts("accounts"),
        order=asked.order,
    )
    return {"codes": [{"account": entry.account, "codes": list(entry.codes)} for entry in made]}


async def _list_invites(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    codes, cursor = await asked.services.operator.accounts.list_codes(
        sort=fields.maybe_text("sort") or "recent",
        cursor=fields.maybe_text("cursor"),
        limit=fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("codes", [invite_view(code) for code in codes], cursor)


async def _disable_invites(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    count = await asked.services.operator.accounts.disable_codes(
        asked.order, codes=fields.texts("codes"), holders=fields.texts("accounts")
    )
    return {"disabled": count}


# Records, blobs, repos


def _record_takedown(takedown: bool) -> Act:
    async def act(asked: Asked) -> dict[str, Json]:
        subject = await _record(asked)
        changed = await asked.services.operator.moderation.change_record(
            subject, takedown=takedown, ref=asked.fields.maybe_text("ref"), order=asked.order
        )
        return {"uri": subject.uri, **_changed(changed)}

    return act


async def _show_record(asked: Asked) -> dict[str, Json]:
    subject = await _record(asked)
    state = await asked.services.operator.moderation.record_state(subject)
    answer: dict[str, Json] = {"uri": subject.uri, "cid": str(state.cid)}
    if state.takedown_ref is not None:
        answer["takedownRef"] = state.takedown_ref
    return answer


async def _list_hidden_records(asked: Asked) -> dict[str, Json]:
    found, cursor = await asked.services.operator.lists.hidden_records(
        await asked.did(),
        cursor=asked.fields.maybe_text("cursor"),
        limit=asked.fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("records", found, cursor)


def _blob_takedown(takedown: bool) -> Act:
    async def act(asked: Asked) -> dict[str, Json]:
        subject = BlobSubject(await asked.did(), _cid(asked.fields.text("cid")))
        changed = await asked.services.operator.moderation.change_blob(
            subject, takedown=takedown, ref=asked.fields.maybe_text("ref"), order=asked.order
        )
        return {"did": subject.did, "cid": str(subject.cid), **_changed(changed)}

    return act


async def _list_blobs(asked: Asked) -> dict[str, Json]:
    cursor = asked.fields.maybe_text("cursor")
    found, more = await asked.services.operator.lists.held_blobs(
        await asked.did(),
        taken_down=asked.fields.flag("takenDown"),
        after=None if cursor is None else _cid(cursor),
        limit=asked.fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("blobs", found, more)


async def _missing_blobs(asked: Asked) -> dict[str, Json]:
    account = await asked.services.accounts.lookup(await asked.did())
    if account is None:
        raise subject_not_found()
    found, cursor = await asked.services.blobs.list_missing(
        account.aid,
        cursor=asked.fields.maybe_text("cursor"),
        limit=asked.fields.page_size(DEFAULT_LIMIT),
    )
    blobs: list[Json] = [{"cid": str(blob.cid), "recordUri": uri} for uri, blob in found]
    return _page("blobs", blobs, cursor)


async def _show_repo(asked: Asked) -> dict[str, Json]:
    return await asked.services.operator.lists.repo(await asked.did())


# Events, relays, the audit trail


async def _list_events(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    did = await asked.did() if fields.maybe_text("account") else None
    events, cursor = await asked.services.operator.lists.events(
        did=did,
        kind=fields.maybe_text("kind"),
        cursor=fields.number_cursor(),
        limit=fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("events", events, cursor)


async def _request_crawl(asked: Asked) -> dict[str, Json]:
    if not asked.order.is_rehearsal:
        await asked.services.operator.lists.note("event.request-crawl", asked.order)
        await asked.services.crawlers.announce_all()
    return {"relays": [admin_lists.relay_view(relay) for relay in asked.services.crawlers.relays]}


async def _list_audit(asked: Asked) -> dict[str, Json]:
    fields = asked.fields
    rows, cursor = await asked.services.operator.audit.list(
        subject=fields.maybe_text("subject"),
        cursor=fields.number_cursor(),
        limit=fields.number("limit", DEFAULT_LIMIT),
    )
    return _page("acts", [audit_view(row) for row in rows], cursor)


ACTS: Final[Mapping[str, Act]] = {
    "account.list": _list_accounts,
    "account.show": _show_account,
    "account.sessions": _list_sessions,
    "account.create": _create_account,
    "account.takedown": _changing(AccountChange(takedown=True)),
    "account.untakedown": _changing(AccountChange(takedown=False)),
    "account.suspend": _changing(AccountChange(suspended=True)),
    "account.unsuspend": _changing(AccountChange(suspended=False)),
    "account.deactivate": _changing(AccountChange(deactivated=True)),
    "account.activate": _changing(AccountChange(deactivated=False)),
    "account.delete": _delete_account,
    "account.set-handle": _set_handle,
    "account.rotate-key": _rotate_key,
    "account.set-email": _set_email,
    "account.set-password": _set_password,
    "account.end-sessions": _end_sessions,
    "account.set-appview": _set_appview,
    "account.enable-invites": _inviting(True),
    "account.disable-invites": _inviting(False),
    "invite.create": _create_invites,
    "invite.list": _list_invites,
    "invite.disable": _disable_invites,
    "record.show": _show_record,
    "record.list-hidden": _list_hidden_records,
    "record.takedown": _record_takedown(True),
    "record.untakedown": _record_takedown(False),
    "blob.list": _list_blobs,
    "blob.missing": _missing_blobs,
    "blob.takedown": _blob_takedown(True),
    "blob.untakedown": _blob_takedown(False),
    "repo.show": _show_repo,
    "event.list": _list_events,
    "event.request-crawl": _request_crawl,
    "audit.list": _list_audit,
    **MOVE_ACTS,
    **KEEPING_ACTS,
    **HOSTNAME_ACTS,
}
"""Every order by its name."""


def _account(info: AccountInfo) -> dict[str, Json]:
    account = info.account
    view = account_view(info)
    view["status"] = account.status.value
    if account.takedown_ref is not None:
        view["takedownRef"] = account.takedown_ref
    return view


def _changed(changed: Changed) -> dict[str, Json]:
    return {"before": changed.before, "after": changed.after, "changed": changed.is_changed}


def _page(name: str, entries: list[Json], cursor: str | None) -> dict[str, Json]:
    page: dict[str, Json] = {name: entries}
    if cursor is not None:
        page["cursor"] = cursor
    return page


async def _record(asked: Asked) -> RecordSubject:
    try:
        uri = parse_at_uri(asked.fields.text("uri"))
    except ProtocolError as error:
        raise RequestError("InvalidRequest", f"Invalid uri: {error}") from error
    if uri.collection is None or uri.rkey is None:
        raise RequestError("InvalidRequest", "The uri of a record has a collection and a key")
    account = await asked.services.accounts.lookup(uri.authority)
    if account is None:
        raise subject_not_found()
    cid = asked.fields.maybe_text("cid")
    path = f"{uri.collection}/{uri.rkey}"
    return RecordSubject(account.did, path, None if cid is None else _cid(cid))


def _cid(text: str) -> Cid:
    try:
        return parse_cid(text)
    except ProtocolError as error:
        raise RequestError("InvalidRequest", f"Invalid cid: {error}") from error
