"""The error families of the whole program, at the bottom of the import order.

Each family says what an error means, and so who may handle it:

* `ProtocolError`: bytes break a rule of the protocol. Converted to `RequestError` where a
  client's bytes entered; one that escapes unconverted is a bug of ours and answers 500.
* `RequestError`: we refuse this request; becomes the XRPC error body.
* `StoreError`: durable state could not be read or written.
* `RemoteError`: the outside world. A definite "no" (`NotResolvable`, `Rejected`) and "could not
  find out" (`Unreachable`) are different everywhere: caching and retries depend on it.
* `ConfigError`: the operator's settings; names the key and the fix.

Concrete errors are defined beside the code that raises them. No message holds a secret.
"""

from collections.abc import Mapping


class ProtocolError(ValueError):
    """Bytes or text that break a rule of the protocol."""


class RequestError(Exception):
    """A request that we refuse.

    `name` is the wire name (declared in the method's lexicon or one of the generic names),
    `status` the HTTP status, `headers` extra response headers such as `Retry-After`.
    Spec: xrpc#error-responses
    """

    def __init__(
        self,
        name: str,
        message: str,
        status: int = 400,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message
        self.status = status
        self.headers = dict(headers or {})


def invalid_request(message: str) -> RequestError:
    """Return the refusal of a request that breaks a rule, where no other name is declared."""
    return RequestError("InvalidRequest", message)


class StoreError(Exception):
    """Durable state could not be read or written."""


class Conflict(StoreError):
    """A row that must be unique exists already, or changed under us."""


class Unavailable(StoreError):
    """The store cannot answer now (disk full, stopped after a failed sync, queue full)."""


class Paused(Unavailable):
    """Writes are refused on purpose, and for a while: the host is being moved."""


class Corrupt(StoreError):
    """Stored bytes are not what they should be."""


class RemoteError(Exception):
    """Something outside this host answered badly or not at all."""


class NotResolvable(RemoteError):
    """A definite no: the name, document or record does not exist."""


class Unreachable(RemoteError):
    """Could not find out: timeout, refused connection, server fault."""


class Rejected(RemoteError):
    """The remote side understood and refused."""


class BadAnswer(RemoteError):
    """The remote side answered with something that breaks the protocol."""


class ConfigError(Exception):
    """A setting is missing or wrong; the message names the key and the fix."""
