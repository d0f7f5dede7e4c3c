"""Applies the table of limits to XRPC requests: who is counted, for what, and who is exempt.

Limits by address are checked before anything else is done for a request; those by account or by a
name in the body once these are known, and before the body of an upload is read (XRPC-70). What was
counted last stays on the request, and the listener shows it in the headers of the answer.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from pds.protocol.data import Json
from pds.services.callers import caller_block, unmapped_address
from pds.services.limits import RateSettings
from pds.services.principal import Principal
from pds.services.rate_limits import Bucket, Count, Key, RateLimits, Subject
from pds.services.rate_table import (
    APART,
    GLOBAL,
    METHODS,
    OF_ACCOUNT,
    Charge,
    When,
    make_limits,
)
from pds.xrpc.body import BodyReader
from pds.xrpc.listener import ServerRequest

BYPASS_HEADER: Final = "x-ratelimit-bypass"
MAX_BLOCKS: Final = 20_000
"""Addresses whose network is remembered: to parse one costs more than all the counting."""


@dataclass(frozen=True, slots=True)
class _Priced:
    """A charge with its counts."""

    charge: Charge
    bucket: Bucket
    is_by_account: bool
    is_for_all: bool


class RateHook:
    """Counts the requests of one `XrpcServer`."""

    def __init__(self, rates: RateLimits, settings: RateSettings) -> None:
        self._rates = rates
        self._networks = settings.bypass_networks
        self._key = (settings.bypass_key or "").encode()
        limits = make_limits(settings)
        self._global = rates.bucket(limits[GLOBAL])
        self._of_account = rates.bucket(limits[OF_ACCOUNT])
        self._apart = {nsid: rates.bucket(limits[name]) for nsid, name in APART.items()}
        self._by_address: dict[str, tuple[Bucket, ...]] = {}
        self._later: dict[str, tuple[_Priced, ...]] = {}
        for nsid, charges in METHODS.items():
            priced = [_priced(entry, rates.bucket(limits[entry.limit])) for entry in charges]
            early = [entry for entry in priced if entry.bucket.limit.key is Key.ADDRESS]
            self._by_address[nsid] = tuple(entry.bucket for entry in early)
            self._later[nsid] = tuple(entry for entry in priced if entry not in early)
        self._subjects: dict[str, Subject | None] = {}

    def admit(self, request: ServerRequest, nsid: str) -> None:
        """Count a request by its address. Raises: RateLimited."""
        address = request.remote or ""
        try:
            subject = self._subjects[address]
        except KeyError:
            subject = self._subject(address)
        nsid = nsid.removesuffix("/")
        if subject is None or (self._key and self._has_key(request)):
            request.is_exempt = True
            return
        request.rate_count = self._apart.get(nsid, self._global).spend(subject)
        if nsid in self._by_address:
            for bucket in self._by_address[nsid]:
                _note(request, bucket.spend(subject))

    def admit_account(self, request: ServerRequest, principal: Principal) -> None:
        """Count a request by its account. Raises: RateLimited."""
        did = principal.did
        if did is not None and not request.is_exempt:
            _note(request, self._of_account.spend(self._rates.text_subject(did)))

    def charge(
        self,
        request: ServerRequest,
        nsid: str,
        principal: Principal | None,
        value: Json,
        body: BodyReader | None,
    ) -> None:
        """Count a request by its account and what it names, and have its bytes counted.

        Raises: RateLimited.
        """
        charges = self._later.get(nsid)
        if not charges or request.is_exempt:
            return
        did = principal.did if principal else None
        account = None if did is None else self._rates.text_subject(did)
        for entry in charges:
            charge, bucket = entry.charge, entry.bucket
            subject = account if entry.is_by_account else self._named(request, entry, value)
            if subject is None or not (entry.is_for_all or charge.applies_to(principal)):
                continue
            points = charge.points
            if points is None:
                if body is not None:
                    _charge_bytes(bucket, subject, body)
                continue
            if not isinstance(points, int):
                points = points(value)
            _note(request, bucket.spend(subject, points))

    def _named(self, request: ServerRequest, entry: _Priced, value: Json) -> Subject | None:
        name = value.get(entry.charge.name_field) if isinstance(value, dict) else None
        if not isinstance(name, str):
            return None
        name = name.strip().lower()
        if entry.bucket.limit.key is Key.NAME:
            return self._rates.name_subject(name)
        return self._rates.name_subject(name, caller_block(request.remote or ""))

    def _has_key(self, request: ServerRequest) -> bool:
        given = request.headers.get(BYPASS_HEADER)
        return given is not None and hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._key
        )

    def _subject(self, address: str) -> Subject | None:
        """Return by what an address is counted, None if it is exempt."""
        subject = (
            None if self._is_exempt(address) else self._rates.text_subject(caller_block(address))
        )
        if len(self._subjects) >= MAX_BLOCKS:
            self._subjects.clear()
        self._subjects[address] = subject
        return subject

    def _is_exempt(self, address: str) -> bool:
        try:
            parsed = unmapped_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


def _priced(charge: Charge, bucket: Bucket) -> _Priced:
    return _Priced(charge, bucket, bucket.limit.key is Key.ACCOUNT, charge.when is When.ALWAYS)


def _charge_bytes(bucket: Bucket, subject: Subject, body: BodyReader) -> None:
    """Bytes that are announced are paid for before they come, others as they come."""
    if body.content_length is not None:
        bucket.spend(subject, body.content_length)
    else:
        bucket.check(subject)
        body.on_bytes = lambda size: bucket.spend(subject, size)


def _note(request: ServerRequest, count: Count) -> None:
    """Remember the count with the fewest points left."""
    known = request.rate_count
    if known is None or count.bucket.points - count.used < known.bucket.points - known.used:
        request.rate_count = count
