"""A host with accounts that have repos: real engine, real keys, nothing faked but DID documents."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pds.blobstore.memory import MemoryBlobStore
from pds.errors import NotResolvable, RequestError
from pds.protocol.car import read_car
from pds.protocol.cid import Cid
from pds.protocol.diddoc import DidDocument, parse_did_document
from pds.protocol.frames import Frame, decode_frame
from pds.protocol.keys import make_signer
from pds.protocol.repo import UNSET, Head
from pds.protocol.repo_verify import BlockMap, verify_commit_event, verify_repo
from pds.protocol.syntax import Did, Handle
from pds.protocol.tid import encode_tid
from pds.services.account_cache import AccountCache
from pds.services.blobs import Blobs, BlobSettings
from pds.services.export import Exports
from pds.services.lexicons import load_catalog
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.repo_txn import create_repo, emit_commit
from pds.services.repos import RecordWrite, Repos
from pds.services.spool import SpoolSettings
from pds.store.accounts import insert_account, update_key
from pds.store.engine import CommittedEvent, Txn
from pds.store.keystore import KEY_ENTROPY_BYTES, Keystore
from pds.store.sqlite import SqliteEngine
from tests.services.account_host import SettableClock, open_engine

ALICE = Did("did:plc:aliceaaaaaaaaaaaaaaaaaaa")
STRANGE = "com.example.unknown"
CREATED = "2026-01-01T00:00:00.000Z"
BOB = Did("did:plc:bobbbbbbbbbbbbbbbbbbbbbb")
POST = "app.bsky.feed.post"
LIKE = "app.bsky.feed.like"
CATALOG = load_catalog()


class Documents:
    """DID documents by DID."""

    def __init__(self) -> None:
        self.by_did: dict[Did, DidDocument] = {}

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        if did not in self.by_did:
            raise NotResolvable(did)
        return self.by_did[did]


@dataclass
class RepoHost:
    engine: SqliteEngine
    clock: SettableClock
    repos: Repos
    exports: Exports
    documents: Documents
    blobs: Blobs
    events: list[CommittedEvent] = field(default_factory=list)
    aids: dict[Did, int] = field(default_factory=dict)
    keystore: Keystore | None = None
    accounts: AccountCache | None = None

    async def add_account(self, did: Did = ALICE, handle: str = "alice.test") -> int:
        secret = did.encode().ljust(32, b"\0")[:32]

        def insert(txn: Txn) -> int:
            now_us = self.clock.now_us()
            aid = insert_account(
                txn, did=did, handle=Handle(handle), email=None, password_hash=None, now_us=now_us
            )
            entropy = bytes([aid]) * KEY_ENTROPY_BYTES
            key_id, _ = self.keystore.create_signing_key(
                txn, aid, curve="k256", secret=secret, entropy=entropy, now_us=now_us
            )
            update_key(txn, aid, key_id)
            signer = make_signer("k256", secret)
            rev = encode_tid(now_us, 1)
            emit_commit(txn, aid, create_repo(txn, aid, did, signer, rev=rev, now_us=now_us))
            return aid

        aid = await self.engine.transact("test.account", insert)
        self.aids[did] = aid
        self.documents.by_did[did] = parse_did_document(
            {"id": did, "alsoKnownAs": [f"at://{handle}"]}, did
        )
        return aid

    def key(self, did: Did = ALICE):
        return make_signer("k256", did.encode().ljust(32, b"\0")[:32]).public_key

    def principal(self, did: Did = ALICE) -> Principal:
        return Principal(PrincipalKind.SESSION, did, self.aids[did], Scope.ACCESS)

    async def create(self, rkey: str | None = None, text: str = "hello", **options):
        value = {"text": text, "createdAt": "2026-01-01T00:00:00.000Z"}
        self.clock.advance(1)
        return await self.repos.write(
            self.aids[ALICE], [RecordWrite("create", POST, rkey, value)], **options
        )

    async def upload(self, content: bytes, mime_type: str = "image/x-test"):
        """Upload a blob for Alice and return its reference as JSON."""

        async def chunks():
            yield content

        return await self.blobs.upload(self.aids[ALICE], chunks(), declared_type=mime_type)

    async def update_account(self, **columns: object) -> None:
        def job(txn: Txn) -> None:
            for column, value in columns.items():
                txn.write(f"UPDATE account SET {column} = ? WHERE did = ?", (value, ALICE))

        await self.engine.transact("test.update", job)

    async def rows(self, sql: str, *params: object) -> list[tuple]:
        return await self.engine.read("test.rows", lambda txn: txn.read(sql, params))

    def frames(self, did: Did = ALICE) -> list[Frame]:
        aid = self.aids[did]
        return [decode_frame(event.frame) for event in self.events if event.aid == aid]

    def verify_events(self, did: Did = ALICE) -> Head | None:
        """Hold every commit event of an account against the strict relay, as one chain."""
        head = None
        for frame in self.frames(did):
            if frame.type == "#commit":
                head = verify_commit_event(frame.payload, self.key(did), previous=head)
        return head

    async def export(self, did: Did = ALICE, **options) -> tuple[tuple[Cid, ...], dict, list]:
        """Return roots, blocks, and the CIDs in the order of the CAR."""
        async with self.exports.repo(did, **options) as chunks:
            content = b"".join([chunk async for chunk in chunks])
        roots, blocks = read_car(content)
        return roots, blocks, list(blocks)

    async def verify_stored(self, did: Did = ALICE) -> dict[str, bytes]:
        """Verify the exported repo and hold the rows against it; return records by path."""
        roots, blocks, order = await self.export(did)
        verified = list(verify_repo(roots[0], BlockMap(blocks), did=did, key=self.key(did)))
        assert list(dict.fromkeys(item.cid for item in verified)) == order
        head = verified[0].cid
        rows = await self.rows(
            "SELECT r.repo_id, r.commit_cid, r.record_count, r.node_count FROM account a"
            " JOIN repo r ON r.repo_id = a.repo_id WHERE a.did = ?",
            did,
        )
        repo_id, commit, records, nodes = rows[0]
        assert commit == head
        stored = await self.rows("SELECT cid, bytes FROM node WHERE repo_id = ?", repo_id)
        assert dict(stored) == {i.cid: i.block for i in verified if i.kind == "node"}
        assert nodes == len(stored)
        index = await self.rows("SELECT path, bytes FROM record WHERE repo_id = ?", repo_id)
        assert dict(index) == {i.path: i.block for i in verified if i.kind == "record"}
        assert records == len(index)
        return dict(index)


@asynccontextmanager
async def repo_host(place: Path, **spool: object) -> AsyncIterator[RepoHost]:
    clock = SettableClock()
    async with open_engine(place, clock) as engine:
        keystore = Keystore(bytes(32))
        documents = Documents()
        accounts = AccountCache(engine)
        repos = Repos(
            engine=engine,
            clock=clock,
            keystore=keystore,
            catalog=CATALOG,
            accounts=accounts,
            documents=documents,
            clock_id=7,
        )
        exports = Exports(engine=engine, cache=repos.cache, settings=SpoolSettings(**spool))
        blobs = Blobs(engine=engine, clock=clock, store=MemoryBlobStore(), settings=BlobSettings())
        host = RepoHost(engine, clock, repos, exports, documents, blobs)
        host.keystore, host.accounts = keystore, accounts
        engine.add_event_hook(host.events.extend)
        yield host


def post(text: str = "hello", rkey: str | None = None, action="create", **fields) -> RecordWrite:
    swap = fields.pop("swap", UNSET)
    value = {"text": text, "createdAt": CREATED} | fields
    return RecordWrite(action, POST, rkey, value, swap)


def strange(rkey: str, action="put", **value) -> RecordWrite:
    return RecordWrite(action, STRANGE, rkey, value)


def like(uri: str, rkey: str | None = None, cid: str | None = None) -> RecordWrite:
    cid = cid or str(Cid.of_data(b"x"))
    value = {"subject": {"uri": uri, "cid": cid}, "createdAt": CREATED}
    return RecordWrite("create", LIKE, rkey, value)


async def write(host: RepoHost, *writes: RecordWrite, **options):
    host.clock.advance(1)
    return await host.repos.write(host.aids[ALICE], writes, **options)


async def refused(host: RepoHost, *writes: RecordWrite, **options) -> RequestError:
    """Check that a batch is refused and that nothing at all changed; return the refusal."""
    before = (await host.exports.head(ALICE), len(host.events))
    with pytest.raises(RequestError) as info:
        await write(host, *writes, **options)
    assert (await host.exports.head(ALICE), len(host.events)) == before
    return info.value


def rkey_of(result, at: int = 0) -> str:
    return result.outcomes[at].uri.rsplit("/", 1)[1]
