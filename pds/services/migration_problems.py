"""What can go wrong with a move, each with a name, an exit code and what to do next.

Pages and commands show `message` and `next_step`; scripts go by `code` or, on the command line, by
the exit code. Problems that pass by themselves (`is_passing`) are tried again for a while before
anybody is asked.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from pds.errors import RequestError


class Code(StrEnum):
    """The names of problems, and of what a move waits for."""

    # What somebody has to give
    LOGIN_NEEDED = "login_needed"
    AUTH_FACTOR_NEEDED = "auth_factor_needed"
    PASSWORD_NEEDED = "password_needed"  # noqa: S105 - the name of a problem
    PLC_TOKEN_NEEDED = "plc_token_needed"  # noqa: S105
    DOCUMENT_NEEDED = "document_needed"
    EMAIL_NEEDED = "email_needed"
    HANDLE_NEEDED = "handle_needed"
    # What is wrong
    ACCOUNT_NOT_FOUND = "account_not_found"
    ALREADY_HERE = "already_here"
    OTHER_HOST_UNREACHABLE = "other_host_unreachable"
    OTHER_HOST_FAULTY = "other_host_faulty"
    OTHER_HOST_REFUSED = "other_host_refused"
    ACCOUNT_REFUSED = "account_refused"
    REPO_REFUSED = "repo_refused"
    BLOBS_UNFINISHED = "blobs_unfinished"
    PLC_TOKEN_REFUSED = "plc_token_refused"  # noqa: S105
    OPERATION_REFUSED = "operation_refused"
    DIRECTORY_UNREACHABLE = "directory_unreachable"
    ACTIVATION_REFUSED = "activation_refused"
    TOO_LATE = "too_late"
    PACED = "paced"
    OUR_FAULT = "our_fault"
    BUSY = "busy"
    # Added later: exit codes are never given anew
    SIGN_IN_NEEDED = "sign_in_needed"
    OAUTH_UNAVAILABLE = "oauth_unavailable"


EXIT_CODES: Final[Mapping[Code, int]] = MappingProxyType(
    {code: number for number, code in enumerate(Code, start=10)}
)
"""Of the command line, from 10 on, in the order above; documented in docs/operate/moving.md."""


class MoveProblem(Exception):
    """A move cannot go on like this.

    `is_passing` says that it may by itself later; `after_s` how long to wait at least. `is_wait`
    says that nothing is wrong, only somebody has to give something.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        next_step: str,
        *,
        is_passing: bool = False,
        is_wait: bool = False,
        after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.next_step = next_step
        self.is_passing = is_passing
        self.is_wait = is_wait
        self.after_s = after_s

    def as_refusal(self) -> RequestError:
        """Return it as the answer to whoever asked for something."""
        return RequestError(self.code.value, f"{self.message}. {self.next_step}")


def waits_for(code: Code, message: str, next_step: str) -> MoveProblem:
    """Return what says that somebody has to give something."""
    return MoveProblem(code, message, next_step, is_wait=True)
