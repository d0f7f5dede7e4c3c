"""A host that learns schemas, and the authority elsewhere that publishes them.

The authority is a real repo behind a fake web host; DNS says what a test wants.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pds.identity.lexicon_names import LexiconAuthorities, authority_of
from pds.net.http import GuardedClient, HttpSettings
from pds.protocol.diddoc import parse_did_document
from pds.protocol.keys import PublicKey
from pds.protocol.syntax import Did, parse_nsid
from pds.services.lexicon_fetch import LexiconFetcher
from pds.services.lexicon_resolution import Lexicons
from pds.services.records_prepare import RecordWrite
from pds.services.repos import Repos
from pds.services.settings import LexiconPolicy
from tests.fakes.dns import FakeDns
from tests.fakes.web import FakeWeb, Page, running_web
from tests.services.repo_host import ALICE, BOB, CATALOG, RepoHost, repo_host

SCHEMA = "com.atproto.lexicon.schema"
AUTHORITY = ALICE
"""Publishes; Bob writes."""
PDS_HOST = "authority.test"
GET_RECORD = "/xrpc/com.atproto.sync.getRecord"


def record_schema(**properties: Any) -> dict[str, Any]:
    """Definitions of a type of record with these properties, the first of them required."""
    required = list(properties)[:1]
    record = {"type": "object", "required": required, "properties": properties}
    return {"main": {"type": "record", "key": "any", "record": record}}


TEXT = {"type": "string", "maxLength": 10}


class LexiconHost:
    """Where Bob writes records whose schemas Alice publishes elsewhere."""

    def __init__(self, base: RepoHost, web: FakeWeb, http: GuardedClient) -> None:
        self.base = base
        self.web = web
        self.http = http
        self.dns = FakeDns()
        self.endpoint = f"http://{PDS_HOST}:{web.port}"
        self.lexicons = self.make_lexicons()

    def make_lexicons(
        self,
        policy: LexiconPolicy = LexiconPolicy.LAZY,
        *,
        timeout_s: float = 5.0,
        write_wait_s: float = 5.0,
        **own: Any,
    ) -> Lexicons:
        """Return what a new process would have: the same rows, an empty memory."""
        fetcher = LexiconFetcher(
            authorities=LexiconAuthorities(self.dns, timeout_s=0.5),
            documents=self.base.documents,
            http=self.http,
            timeout_s=timeout_s,
            **own,
        )
        self.lexicons = Lexicons(
            engine=self.base.engine,
            fetcher=fetcher,
            catalog=CATALOG,
            policy=policy,
            wall=self.base.clock,
            write_wait_s=write_wait_s,
        )
        self.repos = Repos(
            engine=self.base.engine,
            clock=self.base.clock,
            keystore=self.base.keystore,
            catalog=CATALOG,
            accounts=self.base.accounts,
            documents=self.base.documents,
            clock_id=8,
            lexicons=self.lexicons,
        )
        return self.lexicons

    def set_document(self, *, key: PublicKey | None = None, endpoint: str | None = None) -> None:
        """What the DID document of the authority says."""
        did = AUTHORITY
        self.base.documents.by_did[did] = parse_did_document(
            {
                "id": did,
                "verificationMethod": [
                    {
                        "id": f"{did}#atproto",
                        "type": "Multikey",
                        "controller": did,
                        "publicKeyMultibase": (key or self.base.key()).multibase,
                    }
                ],
                "service": [
                    {
                        "id": "#atproto_pds",
                        "type": "AtprotoPersonalDataServer",
                        "serviceEndpoint": endpoint or self.endpoint,
                    }
                ],
            },
            did,
        )

    def set_dns(self, nsid: str, did: Did = AUTHORITY) -> None:
        self.dns.txt[f"_lexicon.{authority_of(parse_nsid(nsid))}"] = [f"did={did}"]

    async def publish(self, nsid: str, defs: dict[str, Any], **fields: Any) -> None:
        """Publish a schema: repo, PDS, DNS."""
        document = {"lexicon": 1, "id": nsid, "defs": defs, **fields}
        self.base.clock.advance(1)
        write = RecordWrite("put", SCHEMA, nsid, document)
        await self.base.repos.write(self.base.aids[AUTHORITY], [write], validate=False)
        await self.serve(nsid)
        self.set_dns(nsid)

    async def prove(self, nsid: str, did: Did = AUTHORITY) -> bytes:
        return await self.base.exports.record_proof(did, SCHEMA, nsid)

    async def serve(self, nsid: str, page: Page | bytes | None = None) -> None:
        """Have the PDS answer for a schema: with its proof, or with anything else."""
        query = urlencode({"did": AUTHORITY, "collection": SCHEMA, "rkey": nsid})
        page = page if page is not None else await self.prove(nsid)
        self.web.set_page(PDS_HOST, f"{GET_RECORD}?{query}", page)

    @property
    def fetches(self) -> int:
        """How often the PDS was asked."""
        return len(self.web.requests)

    async def write(
        self, collection: str, rkey: str = "a", validate: bool | None = None, **value: Any
    ) -> str | None:
        """Put a record as Bob; return its validation status."""
        self.base.clock.advance(1)
        write = RecordWrite("put", collection, rkey, value)
        result = await self.repos.write(self.base.aids[BOB], [write], validate=validate)
        return result.outcomes[0].validation_status


@asynccontextmanager
async def lexicon_host(folder: Path) -> AsyncIterator[LexiconHost]:
    unsafe = HttpSettings.guarded(user_agent="test", unsafe=True)
    async with (
        repo_host(folder) as base,
        running_web() as web,
        GuardedClient(unsafe, resolver=web.resolver) as http,
    ):
        await base.add_account(AUTHORITY)
        await base.add_account(BOB, "bob.test")
        host = LexiconHost(base, web, http)
        host.set_document()
        try:
            yield host
        finally:
            await host.lexicons.close()
