"""What operators look up and set of accounts: lists, invites, address, password, mail.

What moves an account from state to state is in `moderation`. All of it works in every state of an
account (ACC-48), and each act leaves a row in the audit trail.

A mail has no transaction: its row is written before it is sent and says that it was ordered. If it
could not be sent, a second row, with `.failed` behind its name, says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pds.errors import RemoteError, RequestError
from pds.protocol.data import Json
from pds.protocol.syntax import Did, format_datetime
from pds.services.account_cache import AccountCache
from pds.services.account_mails import AccountMails
from pds.services.audit import Order, T, carry_out, note_act
from pds.services.email_addresses import normalize_email, parse_email
from pds.services.moderation import subject_not_found
from pds.services.passwords import Passwords, check_new_password
from pds.services.sessions import Sessions
from pds.store.accounts import (
    Account,
    AccountStatus,
    get_account_by_aid,
    get_account_by_did,
    get_account_by_email,
    search_accounts,
    update_email,
    update_invites_disabled,
    update_password_hash,
)
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.invite_lists import (
    InviteSort,
    ListedInvite,
    disable_invite_code,
    disable_invites_of,
    get_invite_used_by,
    list_invites,
    list_invites_of,
)
from pds.store.invites import ADMIN_HOLDER
from pds.store.mail_tokens import delete_account_mail_tokens

INVALID_HANDLE: Final = "handle.invalid"
MAX_PAGE: Final = 500
DEFAULT_SUBJECT: Final = "Message via your PDS"
MAX_CURSOR_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """An account with its invite codes, and the code that it was made with."""

    account: Account
    invites: tuple[ListedInvite, ...]
    invited_by: ListedInvite | None


@dataclass(frozen=True, slots=True)
class MailOrder:
    """A mail that a moderator sends to an account holder."""

    did: Did
    content: str
    subject: str = DEFAULT_SUBJECT
    comment: str | None = None


class AdminAccounts:
    """Looks up and sets what belongs to accounts, for operators and moderators."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        accounts: AccountCache,
        sessions: Sessions,
        passwords: Passwords,
        mails: AccountMails,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._accounts = accounts
        self._sessions = sessions
        self._passwords = passwords
        self._mails = mails

    # Looking up

    async def infos(self, dids: Sequence[str]) -> list[AccountInfo]:
        """Return those of the accounts that live here, in any state (ACC-48)."""
        wanted = list(dict.fromkeys(dids))

        def read(txn: Txn) -> list[AccountInfo]:
            found = (get_account_by_did(txn, did) for did in wanted)
            return [_info(txn, account) for account in found if account is not None]

        return await self._engine.read("admin.infos", read)

    async def search(
        self,
        *,
        email: str | None = None,
        text: str | None = None,
        status: AccountStatus | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> tuple[list[AccountInfo], str | None]:
        """Return accounts in the order of creation, and the cursor if more follow.

        `email` is part of the address, `text` part of DID, handle or address.
        Raises: RequestError `InvalidRequest` for a cursor that is not ours.
        """
        after = _parse_number(cursor) if cursor is not None else 0
        count = max(1, min(limit, MAX_PAGE))

        def read(txn: Txn) -> list[AccountInfo]:
            found = search_accounts(
                txn, text=text, email=email, status=status, after_aid=after, limit=count + 1
            )
            return [_info(txn, account) for account in found]

        infos = await self._engine.read("admin.search", read)
        more = str(infos[count - 1].account.aid) if len(infos) > count else None
        return infos[:count], more

    async def list_codes(
        self, *, sort: str = InviteSort.RECENT, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[ListedInvite], str | None]:
        """Return invite codes, the newest or the most used first.

        Raises: RequestError `InvalidRequest` for an unknown order or a cursor that is not ours.
        """
        if sort not in set(InviteSort):
            raise RequestError("InvalidRequest", f"unknown sort method: {sort}")
        after = None
        if cursor is not None:
            position, _, code = cursor.partition("::")
            after = _parse_number(position), code
        count = max(1, min(limit, MAX_PAGE))

        def read(txn: Txn) -> list[ListedInvite]:
            return list_invites(txn, InviteSort(sort), after=after, limit=count + 1)

        codes = await self._engine.read("admin.invites", read)
        last = codes[count - 1] if len(codes) > count else None
        return codes[:count], None if last is None else f"{last.position}::{last.code}"

    # Invites

    async def set_inviting(self, did: str, order: Order, *, is_allowed: bool) -> None:
        """Let an account invite, or bar it and the codes that it holds (ACC-25, ACC-26)."""
        aid = await self._aid(did)

        def change(txn: Txn, now_us: int) -> None:
            account = _get(txn, aid)
            update_invites_disabled(txn, aid, is_disabled=not is_allowed)
            self._accounts.forget_after(txn, aid)
            act = "account.enable-invites" if is_allowed else "account.disable-invites"
            before = {"invitesDisabled": account.invites_disabled}
            after = {"invitesDisabled": not is_allowed}
            note_act(txn, order, act, account.did, now_us=now_us, before=before, after=after)

        await self._do("admin.invites", order, change, aid)

    async def disable_codes(
        self, order: Order, *, codes: Sequence[str] = (), holders: Sequence[str] = ()
    ) -> int:
        """Disable codes, and all codes of holders; return how many were not disabled before.

        Raises: RequestError `InvalidRequest` for the operator's own codes as a whole.
        """
        if ADMIN_HOLDER in holders:
            raise RequestError("InvalidRequest", "cannot disable admin invite codes")

        def disable(txn: Txn, now_us: int) -> int:
            counts: dict[str, int] = {}
            for code in dict.fromkeys(codes):
                counts[code] = int(disable_invite_code(txn, code))
            for holder in dict.fromkeys(holders):
                counts[holder] = disable_invites_of(txn, holder)
            for subject, count in counts.items():
                after = {"disabledCodes": count}
                note_act(txn, order, "invite.disable", subject, now_us=now_us, after=after)
            return sum(counts.values())

        return await self._do("admin.disable_codes", order, disable)

    # Address and password

    async def set_email(self, name: str, email: str, order: Order) -> None:
        """Give an account another address, which counts as not confirmed (ACC-48).

        Codes that were sent to the old one are void.
        Raises: RequestError `NotFound`, `InvalidRequest`.
        """
        aid = await self._aid(name)
        address = parse_email(normalize_email(email))

        def change(txn: Txn, now_us: int) -> None:
            account = _get(txn, aid)
            holder = get_account_by_email(txn, address)
            if holder is not None and holder.aid != aid:
                raise RequestError("InvalidRequest", f"Email already taken: {address}")
            update_email(txn, aid, address, confirmed_at=None)
            delete_account_mail_tokens(txn, aid)
            self._accounts.forget_after(txn, aid)
            before, after = {"email": account.email}, {"email": address}
            note_act(
                txn,
                order,
                "account.set-email",
                account.did,
                now_us=now_us,
                before=before,
                after=after,
            )

        await self._do("admin.set_email", order, change, aid)

    async def set_password(self, did: str, password: str, order: Order) -> None:
        """Set the main password and end all sessions (ACC-32, XRPC-26).

        Raises: RequestError `NotFound`, `InvalidRequest`.
        """
        try:
            check_new_password(password)
        except RequestError as error:
            raise RequestError("InvalidRequest", error.message) from error
        aid = await self._aid(did)
        stored = await self._passwords.hash(password)

        def change(txn: Txn, now_us: int) -> None:
            account = _get(txn, aid)
            update_password_hash(txn, aid, stored)
            delete_account_mail_tokens(txn, aid)
            self._sessions.end_sessions(txn, aid)
            self._accounts.forget_after(txn, aid)
            note_act(txn, order, "account.set-password", account.did, now_us=now_us)

        await self._do("admin.set_password", order, change, aid)

    # Mail

    async def send_mail(self, mail: MailOrder, order: Order) -> None:
        """Send a mail to the holder of an account.

        The text is not kept. Raises: RequestError `InvalidRequest`; RemoteError.
        """
        account = await self._accounts.get(mail.did)
        if account is None:
            raise RequestError("InvalidRequest", "Recipient not found")
        if account.email is None:
            raise RequestError("InvalidRequest", "account does not have an email address")
        act = "account.send-mail"
        after: dict[str, Json] = {"subject": mail.subject}
        if mail.comment is not None:
            after["comment"] = mail.comment

        def note(txn: Txn, now_us: int) -> None:
            note_act(txn, order, act, mail.did, now_us=now_us, after=after)

        await self._do("admin.send_mail", order, note, account.aid)
        if order.is_rehearsal:
            return
        try:
            await self._mails.send_moderation(account, subject=mail.subject, content=mail.content)
        except (RequestError, RemoteError) as error:
            await self._note_failure(act, mail.did, order, error)
            raise

    async def _note_failure(self, act: str, did: str, order: Order, error: Exception) -> None:
        """Say in the trail that what was ordered did not happen."""

        def note(txn: Txn, now_us: int) -> None:
            after = {"error": str(error)}
            note_act(txn, order, f"{act}.failed", did, now_us=now_us, after=after)

        await self._do("admin.note_failure", replace(order, replay=None), note)

    async def _do(
        self, label: str, order: Order, job: Callable[[Txn, int], T], aid: int | None = None
    ) -> T:
        accounts = () if aid is None else (aid,)
        now_us = self._clock.now_us()
        return await carry_out(self._engine, label, order, job, now_us, accounts=accounts)

    async def _aid(self, name: str) -> int:
        account = await self._accounts.get(name)
        if account is None:
            raise subject_not_found()
        return account.aid


def account_view(info: AccountInfo) -> dict[str, Json]:
    """Return an account as `com.atproto.admin.defs#accountView`."""
    account = info.account
    view: dict[str, Json] = {
        "did": account.did,
        "handle": account.handle or INVALID_HANDLE,
        "indexedAt": format_datetime(account.created_at),
        "invites": [invite_view(invite) for invite in info.invites],
        "invitesDisabled": account.invites_disabled,
    }
    if account.email is not None:
        view["email"] = account.email
    if account.email_confirmed_at is not None:
        view["emailConfirmedAt"] = format_datetime(account.email_confirmed_at)
    if info.invited_by is not None:
        view["invitedBy"] = invite_view(info.invited_by)
    if account.deactivated_at is not None:
        view["deactivatedAt"] = format_datetime(account.deactivated_at)
    return view


def invite_view(invite: ListedInvite) -> dict[str, Json]:
    """Return a code as `com.atproto.server.defs#inviteCode`."""
    return {
        "code": invite.code,
        "available": invite.use_count,
        "disabled": invite.disabled,
        "forAccount": invite.for_account,
        "createdBy": invite.created_by,
        "createdAt": format_datetime(invite.created_at),
        "uses": [
            {"usedBy": use.used_by, "usedAt": format_datetime(use.used_at)} for use in invite.uses
        ],
    }


def _info(txn: Txn, account: Account) -> AccountInfo:
    invites = tuple(list_invites_of(txn, account.did))
    return AccountInfo(account, invites, get_invite_used_by(txn, account.aid))


def _get(txn: Txn, aid: int) -> Account:
    account = get_account_by_aid(txn, aid)
    if account is None:
        raise subject_not_found()
    return account


def _parse_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > MAX_CURSOR_DIGITS:
        raise RequestError("InvalidRequest", "Malformed cursor")
    return int(text)
