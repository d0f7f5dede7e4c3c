"""did:web: the document lies at a well-known place of the host that the DID names.

Only whole hosts are identities here: no paths, and a port only for `localhost` in development. The
host is a stranger's, so the guarded client fetches it.

Spec: (ID-2, ID-40, DM-67)
"""

from typing import Final
from urllib.parse import unquote

from pds.errors import BadAnswer, NotResolvable, Rejected
from pds.identity.errors import DidNotFound, UnsupportedDidMethod
from pds.net.http import HttpClient
from pds.protocol.syntax import Did, is_blessed_did, is_disallowed_tld

MAX_DOCUMENT_BYTES: Final = 65_536
TIMEOUT_S: Final = 5.0

_ACCEPT: Final = {"Accept": "application/did+ld+json, application/json"}


def did_web_url(did: Did, *, dev: bool = False) -> str:
    """Return where the document of a did:web lies.

    `dev` allows `localhost` with a port, over plain http. Raises: UnsupportedDidMethod.
    """
    if not did.startswith("did:web:") or not is_blessed_did(did, dev=dev):
        raise UnsupportedDidMethod(f"{did} is not a did:web of a public host name")
    host = unquote(did.removeprefix("did:web:"))
    is_local = host.partition(":")[0] == "localhost"
    if not is_local and is_disallowed_tld(host, dev=dev):
        raise UnsupportedDidMethod(f"{did} has a top-level domain that no host may have")
    return f"{'http' if is_local else 'https'}://{host}/.well-known/did.json"


class DidWebResolver:
    """Fetches did:web documents."""

    def __init__(
        self, http: HttpClient, *, dev: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._http = http
        self._dev = dev
        self._timeout_s = timeout_s

    async def fetch_document(self, did: Did) -> bytes:
        """Return the JSON of the document as it was served.

        Raises: UnsupportedDidMethod, DidNotFound (no such host, not 2xx, too large), Unreachable.
        """
        url = did_web_url(did, dev=self._dev)
        try:
            answer = await self._http.get_bytes(
                url, headers=_ACCEPT, max_bytes=MAX_DOCUMENT_BYTES, timeout_s=self._timeout_s
            )
        except (NotResolvable, Rejected, BadAnswer) as error:
            raise DidNotFound(f"{did} has no document: {error}") from error
        return answer.body
