"""Which limits there are, and what each method costs: data, in the order of the methods' names.

The figures are the reference's (XRPC-70) where it has one. It has none for reserveSigningKey and
requestPlcOperationSignature, which are open to abuse without, and it counts uploads by address,
where one family or one migration tool is many accounts. `pds.xrpc.rate_hook` applies the table by
name, so that a handler need not know of it.

Limits on guessing are not here: whoever judges a password counts the guesses (`login_limits`,
`admin_auth`), because they depend on what was found out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, TypeAlias

from pds.protocol.data import Json
from pds.services.limits import RateSettings
from pds.services.principal import Principal
from pds.services.rate_limits import Key, Limit
from pds.store.accounts import AccountStatus

FIVE_MINUTES: Final = 300
HOUR: Final = 3600
DAY: Final = 86_400
CREATE_POINTS: Final = 3
UPDATE_POINTS: Final = 2
DELETE_POINTS: Final = 1
MOVING_FACTOR: Final = 10
"""An account that moves in brings years of blobs in a day."""
MAX_ADDRESSES: Final = 50_000
MAX_ACCOUNTS: Final = 20_000

PointsOf: TypeAlias = Callable[[Json], int]
"""Points for the JSON body of a request."""


class When(Enum):
    """For which accounts a charge counts."""

    ALWAYS = auto()
    SETTLED = auto()
    """Not deactivated."""
    MOVING = auto()
    """Deactivated, as accounts are that move in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one request spends of one limit.

    `points` is None for the bytes of the body. `name_field` is the field of the body that names
    the subject, where the limit is counted by a name.
    """

    limit: str
    points: int | PointsOf | None = 1
    name_field: str = ""
    when: When = When.ALWAYS

    def applies_to(self, principal: Principal | None) -> bool:
        """Whether the account of the caller is one that this counts for."""
        if self.when is When.ALWAYS:
            return True
        status = principal.status if principal else None
        return (status is AccountStatus.DEACTIVATED) is (self.when is When.MOVING)


def make_limits(settings: RateSettings) -> Mapping[str, Limit]:
    """Return the limits by name, with the operator's figures."""
    address, account, name = Key.ADDRESS, Key.ACCOUNT, Key.NAME
    figures: tuple[tuple[str, Key, int, int], ...] = (
        ("requests", address, settings.requests, FIVE_MINUTES),
        ("account-requests", account, 2 * settings.requests, FIVE_MINUTES),
        ("exports", address, 2 * settings.requests, FIVE_MINUTES),
        ("writes-hour", account, settings.writes_hour, HOUR),
        ("writes-day", account, settings.writes_day, DAY),
        ("uploads", account, settings.uploads_day, DAY),
        ("uploads-moving", account, MOVING_FACTOR * settings.uploads_day, DAY),
        ("upload-bytes", account, settings.upload_bytes_day, DAY),
        ("upload-bytes-moving", account, MOVING_FACTOR * settings.upload_bytes_day, DAY),
        ("imports", account, 30, HOUR),
        ("sign-up", address, 100, FIVE_MINUTES),
        ("handle", account, 10, FIVE_MINUTES),
        ("handle-day", account, 50, DAY),
        ("plc", account, 10, FIVE_MINUTES),
        ("plc-day", account, 50, DAY),
        ("reserve-key", address, 100, FIVE_MINUTES),
        ("reserve-key-day", address, 1000, DAY),
        ("refresh-identity", address, 100, FIVE_MINUTES),
        ("resolve-lexicon", address, 100, FIVE_MINUTES),
        ("check-handle", address, 300, FIVE_MINUTES),
        ("codes", account, 50, FIVE_MINUTES),
        ("codes-reset", address, 50, FIVE_MINUTES),
        ("codes-delete", address, 50, FIVE_MINUTES),
        ("mail-reset", address, 15, HOUR),
        ("mail-reset-day", address, 50, DAY),
        ("mail-reset-to", Key.ADDRESS_AND_NAME, 5, HOUR),
        ("mail-reset-to-day", Key.ADDRESS_AND_NAME, 15, DAY),
        ("mail-reset-all", name, 30, HOUR),
        ("mail-reset-all-day", name, 100, DAY),
        ("mail-delete", account, 5, HOUR),
        ("mail-delete-day", account, 15, DAY),
        ("mail-confirm", account, 5, HOUR),
        ("mail-confirm-day", account, 15, DAY),
        ("mail-update", account, 5, HOUR),
        ("mail-update-day", account, 15, DAY),
        ("mail-plc", account, 5, HOUR),
        ("mail-plc-day", account, 15, DAY),
    )
    bounds = {
        GLOBAL: MAX_ADDRESSES,
        **dict.fromkeys((OF_ACCOUNT, "writes-hour", "writes-day"), MAX_ACCOUNTS),
    }
    return MappingProxyType(
        {
            limit_name: Limit(
                name=limit_name,
                key=key,
                points=points,
                window_s=window_s,
                **({"max_subjects": bounds[limit_name]} if limit_name in bounds else {}),
            )
            for limit_name, key, points, window_s in figures
        }
    )


def write_points(body: Json) -> int:
    """Return the points of an applyWrites body."""
    total = 0
    for write in body["writes"] if isinstance(body, dict) else ():  # type: ignore[union-attr]
        kind = str(write.get("$type", "")) if isinstance(write, dict) else ""
        if kind.endswith("#create"):
            total += CREATE_POINTS
        elif kind.endswith("#update"):
            total += UPDATE_POINTS
        else:
            total += DELETE_POINTS
    return total


def _writes(points: int | PointsOf) -> tuple[Charge, ...]:
    return Charge(limit="writes-hour", points=points), Charge(limit="writes-day", points=points)


def _charge(*limits: str) -> tuple[Charge, ...]:
    return tuple(Charge(limit=name) for name in limits)


GLOBAL: Final = "requests"
"""The limit that every request counts for, except those of the methods in `APART`."""

OF_ACCOUNT: Final = "account-requests"
"""The limit that every request with a credential counts for: one account at many addresses."""

APART: Final[Mapping[str, str]] = MappingProxyType({"com.atproto.sync.getRepo": "exports"})
"""Methods that have a limit of their own instead: whoever follows a host exports all of it."""

METHODS: Final[Mapping[str, tuple[Charge, ...]]] = MappingProxyType(
    {
        "com.atproto.identity.refreshIdentity": _charge("refresh-identity"),
        "com.atproto.identity.requestPlcOperationSignature": _charge("mail-plc", "mail-plc-day"),
        "com.atproto.identity.signPlcOperation": _charge("codes"),
        "com.atproto.identity.submitPlcOperation": _charge("plc", "plc-day"),
        "com.atproto.identity.updateHandle": _charge("handle", "handle-day"),
        # Slow authorities hold look-ups up that writes may be waiting for.
        "com.atproto.lexicon.resolveLexicon": _charge("resolve-lexicon"),
        "com.atproto.repo.applyWrites": _writes(write_points),
        "com.atproto.repo.createRecord": _writes(CREATE_POINTS),
        "com.atproto.repo.deleteRecord": _writes(DELETE_POINTS),
        "com.atproto.repo.importRepo": _charge("imports"),
        "com.atproto.repo.putRecord": _writes(UPDATE_POINTS),
        "com.atproto.repo.uploadBlob": (
            Charge(limit="uploads", when=When.SETTLED),
            Charge(limit="upload-bytes", points=None, when=When.SETTLED),
            Charge(limit="uploads-moving", when=When.MOVING),
            Charge(limit="upload-bytes-moving", points=None, when=When.MOVING),
        ),
        "com.atproto.server.confirmEmail": _charge("codes"),
        "com.atproto.server.createAccount": _charge("sign-up"),
        "com.atproto.server.deleteAccount": _charge("codes-delete"),
        "com.atproto.server.requestAccountDelete": _charge("mail-delete", "mail-delete-day"),
        "com.atproto.server.requestEmailConfirmation": _charge("mail-confirm", "mail-confirm-day"),
        "com.atproto.server.requestEmailUpdate": _charge("mail-update", "mail-update-day"),
        "com.atproto.server.requestPasswordReset": (
            *_charge("mail-reset", "mail-reset-day"),
            Charge(limit="mail-reset-to", name_field="email"),
            Charge(limit="mail-reset-to-day", name_field="email"),
            # Far more than one address may ask for: nobody alone can keep an owner from it.
            Charge(limit="mail-reset-all", name_field="email"),
            Charge(limit="mail-reset-all-day", name_field="email"),
        ),
        "com.atproto.server.reserveSigningKey": _charge("reserve-key", "reserve-key-day"),
        "com.atproto.server.resetPassword": _charge("codes-reset"),
        "com.atproto.server.updateEmail": _charge("codes"),
        "com.atproto.temp.checkHandleAvailability": _charge("check-handle"),
    }
)
"""What requests cost beside the global limit."""
