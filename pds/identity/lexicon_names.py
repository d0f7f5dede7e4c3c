"""From an NSID to the DID that may say what it means: one DNS TXT record.

The authority of `net.example.feed.post` is whoever controls `feed.example.net`: the record lies at
`_lexicon.feed.example.net` and names a DID, in whose repo the schema is a record. There is no
search up or down the tree of names, no web page instead, and no second opinion: several records
name nobody.

Nothing is remembered here, because nobody announces a change of it (LEX-83).

Spec: (LEX-80)
"""

import asyncio
from typing import Final

from pds.errors import NotResolvable, Unreachable
from pds.identity.handle import MAX_DNS_NAME_CHARS, TxtLookup
from pds.protocol.syntax import Did, InvalidSyntax, Nsid, parse_did

LOOKUP_TIMEOUT_S: Final = 3.0


class NoLexiconAuthority(NotResolvable):
    """DNS names no DID for this group of NSIDs, or more than one: a definite no."""


def authority_of(nsid: Nsid) -> str:
    """Return the domain whose owner decides about `nsid`: all but the last segment, reversed."""
    return ".".join(reversed(nsid.lower().split(".")[:-1]))


class LexiconAuthorities:
    """Asks DNS who may define an NSID."""

    def __init__(self, dns: TxtLookup, *, timeout_s: float = LOOKUP_TIMEOUT_S) -> None:
        self._dns = dns
        self._timeout_s = timeout_s

    async def resolve(self, nsid: Nsid) -> Did:
        """Return the DID in whose repo the schema of `nsid` lies.

        Raises: NoLexiconAuthority (a definite no), Unreachable. Spec: LEX-80
        """
        name = f"_lexicon.{authority_of(nsid)}"
        if len(name) > MAX_DNS_NAME_CHARS:
            raise NoLexiconAuthority(f"{name} is too long for a DNS name")
        try:
            async with asyncio.timeout(self._timeout_s):
                records = await self._dns.lookup_txt(name)
        except TimeoutError as error:
            raise Unreachable(f"timeout while looking up {name}") from error
        except NotResolvable as error:
            raise NoLexiconAuthority(f"there is no TXT record at {name}") from error
        claims = [text.removeprefix("did=") for text in records if text.startswith("did=")]
        if len(claims) != 1:
            found = "several" if claims else "no"
            raise NoLexiconAuthority(f"the TXT records at {name} name {found} DIDs")
        try:
            return parse_did(claims[0].strip())
        except InvalidSyntax as error:
            raise NoLexiconAuthority(f"the TXT record at {name} names no valid DID") from error
