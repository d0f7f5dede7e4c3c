"""From a handle to a DID: a DNS TXT record and a well-known web page, asked at the same time.

DNS decides when it names a DID; the page counts only when DNS definitely has nothing, or cannot be
asked. Two different DIDs in DNS are a failure, whatever the page says. If neither names a DID, the
backup nameservers are asked, and then the answer is "not found" only when nobody failed to answer.

This is one direction. The other one, that the DID's document claims the handle, is judged by
`IdentityResolver.resolve_identity`.

Spec: (ID-1, ID-2, ID-3, ID-10, ID-11, ID-12)
"""

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol

from pds.errors import BadAnswer, NotResolvable, Rejected, Unreachable
from pds.identity.errors import HandleNotFound
from pds.net.http import HttpClient
from pds.protocol.syntax import Did, Handle, InvalidSyntax, is_disallowed_tld, parse_did

MAX_PAGE_BYTES: Final = 8_192
MAX_REDIRECTS: Final = 3
MAX_DNS_NAME_CHARS: Final = 253
WELL_KNOWN_URL: Final = "https://{handle}/.well-known/atproto-did"


class TxtLookup(Protocol):
    """Asks DNS for text records, as `pds.net.dns.DnsClient` does."""

    async def lookup_txt(self, name: str) -> list[str]:
        """Return the TXT records of `name`. Raises: NotResolvable, Unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleResolverSettings:
    """`dev` allows `.test` names; `well_known_url` can point elsewhere in tests."""

    timeout_s: float = 3.0
    dev: bool = False
    well_known_url: str = WELL_KNOWN_URL


class HandleResolver:
    """Resolves handles, uncached."""

    def __init__(
        self,
        http: HttpClient,
        dns: TxtLookup,
        *,
        backup_dns: TxtLookup | None = None,
        settings: HandleResolverSettings | None = None,
    ) -> None:
        """Ask `dns`, and hosts through the guarded client `http`."""
        self._http = http
        self._dns = dns
        self._backup_dns = backup_dns
        self._settings = settings or HandleResolverSettings()

    async def resolve(self, handle: Handle) -> Did:
        """Return the DID that the handle names.

        Raises: HandleNotFound (a definite no), Unreachable.
        """
        if is_disallowed_tld(handle, dev=self._settings.dev):
            raise HandleNotFound(f"{handle} has a top-level domain that no handle may have")
        page = asyncio.create_task(self._ask_page(handle))
        try:
            return await self._decide(handle, page)
        finally:
            page.cancel()
            await asyncio.gather(page, return_exceptions=True)

    async def _decide(self, handle: Handle, page: asyncio.Task[Did | None]) -> Did:
        unreachable: Unreachable | None = None
        try:
            found = await self._ask_dns(self._dns, handle)
        except Unreachable as error:
            found, unreachable = None, error
        if found is None:
            try:
                found = await page
            except Unreachable as error:
                unreachable = error
        if found is None and self._backup_dns is not None:
            try:
                found = await self._ask_dns(self._backup_dns, handle)
            except Unreachable as error:
                unreachable = error
        if found is not None:
            return found
        if unreachable is not None:
            raise Unreachable(f"could not resolve {handle}") from unreachable
        raise HandleNotFound(f"{handle} does not resolve to a DID")

    async def _ask_dns(self, dns: TxtLookup, handle: Handle) -> Did | None:
        """Return the one DID in DNS; None for none. Raises: HandleNotFound, Unreachable."""
        name = f"_atproto.{handle}"
        if len(name) > MAX_DNS_NAME_CHARS:
            return None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                records = await dns.lookup_txt(name)
        except NotResolvable:
            return None
        except TimeoutError as error:
            raise Unreachable(f"timeout while looking up {name}") from error
        found = {did for record in records if (did := _parse_record(record)) is not None}
        if len(found) > 1:
            raise HandleNotFound(f"{handle} names several DIDs in DNS")
        return found.pop() if found else None

    async def _ask_page(self, handle: Handle) -> Did | None:
        """Return the DID on the well-known page; None for none. Raises: Unreachable."""
        try:
            answer = await self._http.get_bytes(
                self._settings.well_known_url.format(handle=handle),
                headers={"Accept": "text/plain"},
                max_bytes=MAX_PAGE_BYTES,
                timeout_s=self._settings.timeout_s,
                max_redirects=MAX_REDIRECTS,
            )
        except (NotResolvable, Rejected, BadAnswer):
            return None
        first_line = answer.body.decode("utf-8", "replace").strip().partition("\n")[0]
        return _parse_did_or_none(first_line.strip())


def _parse_record(record: str) -> Did | None:
    if not record.startswith("did="):
        return None
    return _parse_did_or_none(record.removeprefix("did=").strip())


def _parse_did_or_none(text: str) -> Did | None:
    try:
        return parse_did(text)
    except InvalidSyntax:
        return None
