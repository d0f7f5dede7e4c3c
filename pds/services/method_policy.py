"""Which methods a service token may be made for, and by whom.

The proxy and `getServiceAuth` both mint tokens that let another service act for an account; they
share these lists. Matching ignores case (DM-65), because a verifier elsewhere may.
"""

from typing import Final

_IDENTITY: Final = ("requestPlcOperationSignature", "signPlcOperation", "updateHandle")
_SERVER: Final = (
    "activateAccount",
    "confirmEmail",
    "createAppPassword",
    "deactivateAccount",
    "getAccountInviteCodes",
    "getSession",
    "listAppPasswords",
    "requestAccountDelete",
    "requestEmailConfirmation",
    "requestEmailUpdate",
    "revokeAppPassword",
    "updateEmail",
)

CREATE_ACCOUNT: Final = "com.atproto.server.createAccount"
"""The one method that a taken-down account may ask a token for: moving out (ACC-45)."""

PROTECTED_METHODS: Final = frozenset(
    nsid.lower()
    for nsid in (
        "com.atproto.admin.sendEmail",
        *(f"com.atproto.identity.{name}" for name in _IDENTITY),
        *(f"com.atproto.server.{name}" for name in _SERVER),
    )
)
"""Never proxied, never service-authed (XRPC-62), in lower case."""

PRIVILEGED_PREFIX: Final = "chat.bsky."
"""All of these are privileged, so that new ones are covered (XRPC-63)."""


def is_protected(nsid: str) -> bool:
    """Whether no token may ever be made for this method (XRPC-62)."""
    return nsid.lower() in PROTECTED_METHODS


def is_privileged(nsid: str) -> bool:
    """Whether only full and privileged sessions may have a token for this method (XRPC-63)."""
    lowered = nsid.lower()
    return lowered == CREATE_ACCOUNT.lower() or lowered.startswith(PRIVILEGED_PREFIX)
