"""How much a request may be, and how often: what the operator can limit.

The defaults are the reference's (XRPC-5); clients are written against them.
"""

from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Largest accepted bodies, counted after decompression, and whether attempts are counted."""

    json_bytes: int = 150 * KIB
    record_write_bytes: int = 1_000_000
    text_bytes: int = 100 * KIB
    blob_bytes: int = field(
        default=5 * MIB,
        metadata={"env": "PDS_BLOB_UPLOAD_LIMIT", "help": "Largest blob an account may upload."},
    )
    repo_import_bytes: int | None = field(
        default=None,
        metadata={
            "env": "PDS_MAX_REPO_IMPORT_SIZE",
            "help": "Largest CAR file accepted by importRepo; no limit when unset.",
        },
    )
    body_idle_s: float = 60.0
    are_sign_ins_limited: bool = field(
        default=True,
        metadata={
            "env": "PDS_RATE_LIMITS_ENABLED",
            "help": (
                "`false` lifts the limits on attempts to sign in. Other requests have no limits "
                "yet: put them into your reverse proxy."
            ),
        },
    )
