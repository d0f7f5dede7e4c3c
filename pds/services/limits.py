"""How much a request may be, and how often: what the operator can limit.

The defaults are the reference's (XRPC-5, XRPC-70); clients are written against them.
"""

from dataclasses import dataclass, field
from typing import Final

from pds.services.callers import Network, parse_networks

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Largest accepted bodies, counted after decompression."""

    json_bytes: int = 150 * KIB
    record_write_bytes: int = 1_000_000
    text_bytes: int = 100 * KIB
    blob_bytes: int = field(
        default=5 * MIB,
        metadata={"env": "PDS_BLOB_UPLOAD_LIMIT", "help": "Largest blob an account may upload."},
    )
    repo_import_bytes: int | None = field(
        default=GIB,
        metadata={
            "env": "PDS_MAX_REPO_IMPORT_SIZE",
            "help": "Largest CAR file accepted by importRepo, in bytes.",
        },
    )
    body_idle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSettings:
    """How often callers may do what, and who is exempt."""

    enabled: bool = field(
        default=True,
        metadata={
            "env": "PDS_RATE_LIMITS_ENABLED",
            "help": (
                "`false` lifts the limits on requests, writes and uploads; those on guessing"
                " passwords stay (`PDS_SIGN_IN_LIMITS_ENABLED`)."
            ),
        },
    )
    sign_ins_enabled: bool = field(
        default=True,
        metadata={
            "env": "PDS_SIGN_IN_LIMITS_ENABLED",
            "help": (
                "`false` lifts the limits on attempts to sign in to an account, for tests; those"
                " on the operator's password always hold."
            ),
        },
    )
    bypass_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "env": "PDS_RATE_LIMIT_BYPASS_KEY",
            "help": (
                "Whoever sends it as the header `x-ratelimit-bypass` is exempt from all limits"
                " but those on guessing."
            ),
            "secret": True,
        },
    )
    bypass_networks: tuple[Network, ...] = field(
        default=(),
        metadata={
            "env": "PDS_RATE_LIMIT_BYPASS_IPS",
            "help": (
                "Addresses and networks that are exempt from all limits but those on guessing."
            ),
            "parse": parse_networks,
        },
    )
    requests: int = field(
        default=3000,
        metadata={
            "env": "PDS_RATE_LIMIT_REQUESTS",
            "help": (
                "Requests of one address (IPv6: /64) in 5 minutes. Exports (getRepo) count apart,"
                " and one account may send twice as many from any number of addresses."
            ),
        },
    )
    writes_hour: int = field(
        default=5000,
        metadata={
            "env": "PDS_RATE_LIMIT_WRITES_PER_HOUR",
            "help": "Points for writes of one account in an hour: create 3, update 2, delete 1.",
        },
    )
    writes_day: int = field(
        default=35_000,
        metadata={
            "env": "PDS_RATE_LIMIT_WRITES_PER_DAY",
            "help": "The same points in a day.",
        },
    )
    uploads_day: int = field(
        default=1000,
        metadata={
            "env": "PDS_RATE_LIMIT_UPLOADS_PER_DAY",
            "help": (
                "Blobs that one account may upload in a day; ten times as many while it is"
                " deactivated, for those who move in."
            ),
        },
    )
    upload_bytes_day: int = field(
        default=5 * GIB,
        metadata={
            "env": "PDS_RATE_LIMIT_UPLOAD_BYTES_PER_DAY",
            "help": "Bytes of blobs that one account may upload in a day, likewise.",
        },
    )
