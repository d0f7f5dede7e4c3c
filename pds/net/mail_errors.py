"""What can go wrong with handing over a mail.

`str()` of these errors says what happened without the words of the other side, which like to repeat
the address: it may be logged. The words are in `detail`, for the operator's terminal.
"""

from pds.errors import Rejected, RemoteError, Unreachable


class MailError(RemoteError):
    """A mail was not taken over."""

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class MailUnreachable(MailError, Unreachable):
    """Could not be handed over now: no connection, no answer in time, or "try again later"."""


class MailRejected(MailError, Rejected):
    """The mail system refuses us or our mail: credentials, sender, content."""


class RecipientRejected(MailRejected):
    """The mail system takes no mail for this recipient."""
