"""Which handles are still to be had, what to take instead, and which the operator sets aside.

Handles are public, so that one is taken is no secret. What is reserved counts as taken.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pds.errors import RequestError
from pds.protocol.syntax import Handle, InvalidSyntax, parse_handle
from pds.services.audit import Order, carry_out, note_act
from pds.services.email_addresses import is_email
from pds.services.handles import HandlePolicy
from pds.services.identity_acts import check_handle_free
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.reserved_handles import put_reserved_handle

MAX_SUGGESTIONS: Final = 5
_MAX_CANDIDATES: Final = 40
_SUFFIXES: Final = ("-1", "-2", "-3", "-me", "-net", *(str(number) for number in range(1, 30)))


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Another handle, and what it was made of: `domain`, `suffix`, `email` or `birth_year`."""

    handle: Handle
    method: str


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether somebody could sign up with a handle now; if not, what would do."""

    handle: Handle
    is_available: bool
    suggestions: tuple[Suggestion, ...] = ()


class HandleNames:
    """Answers questions about handles that nobody has yet."""

    def __init__(self, *, engine: Engine, clock: Clock, handles: HandlePolicy) -> None:
        self._engine = engine
        self._clock = clock
        self._handles = handles

    async def check(
        self, text: str, *, email: str | None = None, birth_date: str | None = None
    ) -> Availability:
        """Return whether a new account could have this handle.

        `email` and `birth_date` only serve suggestions. Raises: RequestError `InvalidEmail`.
        """
        if email is not None and not is_email(email):
            raise RequestError("InvalidEmail", "Not an email address")
        handle = Handle(text.lower())
        if await self._engine.read("handle.free", self._find_free, [handle], 1):
            return Availability(handle, True)
        made = dict(self._candidates(handle, email, birth_date))
        free = await self._engine.read(
            "handle.suggest", self._find_free, list(made)[:_MAX_CANDIDATES], MAX_SUGGESTIONS
        )
        return Availability(handle, False, tuple(Suggestion(name, made[name]) for name in free))

    async def reserve(self, text: str, *, order: Order) -> list[Handle]:
        """Set a handle aside, or a label under every domain of ours; return what was set aside.

        Who has it already keeps it. Raises: RequestError `InvalidHandle`.
        """
        lowered = text.strip().lower().removeprefix("@")
        names = [lowered]
        if "." not in lowered:
            names = [lowered + domain for domain in self._handles.service_domains]
        handles = [self._handles.parse(name) for name in names]
        now_us = self._clock.now_us()

        def put_all(txn: Txn) -> None:
            for handle in handles:
                put_reserved_handle(txn, handle)
                note_act(txn, order, "handle.reserve", handle, now_us=now_us)

        await carry_out(self._engine, "handle.reserve", order, put_all)
        return handles

    def _find_free(self, txn: Txn, handles: Sequence[Handle], limit: int) -> list[Handle]:
        free: list[Handle] = []
        for handle in handles:
            if len(free) == limit:
                break
            try:
                self._handles.check_ours(self._handles.parse(handle))
                check_handle_free(txn, handle, None, allow_reserved=False)
            except RequestError:
                continue
            free.append(handle)
        return free

    def _candidates(
        self, handle: Handle, email: str | None, birth_date: str | None
    ) -> Iterator[tuple[Handle, str]]:
        """Names close to the one that was asked for, the closest first."""
        domains = self._handles.service_domains
        ours = [domain for domain in domains if handle.endswith(domain)]
        domain = max(ours, key=len) if ours else domains[0]
        label = handle.removesuffix(domain).partition(".")[0]
        room = self._handles.max_label_chars
        for other in domains:
            yield from _name(label[:room], other, "domain")
        if birth_date is not None:
            year = birth_date[2:4]
            yield from _name(f"{label[: room - len(year)]}{year}", domain, "birth_year")
        if email is not None:
            local = email.lower().partition("@")[0].replace(".", "-").replace("_", "-")
            yield from _name(local[:room], domain, "email")
        for suffix in _SUFFIXES:
            yield from _name(f"{label[: room - len(suffix)]}{suffix}", domain, "suffix")


def _name(label: str, domain: str, method: str) -> Iterator[tuple[Handle, str]]:
    try:
        yield parse_handle(label + domain), method
    except InvalidSyntax:
        return
