"""Asking who is who: what use cases need of the resolver of identities.

`pds.identity.resolver.IdentityResolver` is what stands behind these seams. `refresh` asks anew
where otherwise an answer from a while ago would do.
"""

from typing import Protocol

from pds.protocol.diddoc import DidDocument
from pds.protocol.syntax import Did, Handle


class DidDocuments(Protocol):
    """Tells the documents of DIDs."""

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        """Return the document of a DID; raises NotResolvable or Unreachable."""


class Resolver(DidDocuments, Protocol):
    """Tells the documents of DIDs, and whom handles name."""

    async def resolve_handle(self, handle: Handle, *, refresh: bool = False) -> Did:
        """Return the DID that a handle names; raises NotResolvable or Unreachable."""


class Forgetful(Protocol):
    """Remembers identities until it is told that they have changed."""

    async def forget(self, did: Did, handle: Handle | None = None) -> None:
        """Drop what is remembered of an identity."""


class ForgetfulResolver(Resolver, Forgetful, Protocol):
    """Resolves identities, and can be told that they have changed."""
