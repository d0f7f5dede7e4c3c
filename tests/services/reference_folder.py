"""The data folder of a reference PDS, made by hand: layouts written down from its behaviour."""

import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pds.protocol import cbor
from pds.protocol.car import encode_car
from pds.protocol.cid import Cid
from pds.protocol.keys import Signer, make_signer
from pds.protocol.mst.tree import ForeignNodes
from pds.protocol.repo import FinishedCommit, Head, Write, finish_commit, plan_writes
from pds.protocol.repo_verify import BlockMap
from pds.protocol.syntax import Did
from pds.protocol.tid import encode_tid
from pds.services.reference_import_settings import read_reference_settings
from pds.store.reference_reader import ReferenceHost, ReferencePaths
from tests.services.account_host import START_US

DAY_US = 86_400 * 1_000_000
PICTURE = b"the bytes of a picture"
ACCOUNT_TABLES = """
CREATE TABLE kysely_migration (name varchar(255) PRIMARY KEY, timestamp varchar(255) NOT NULL);
CREATE TABLE actor (did varchar PRIMARY KEY, handle varchar, createdAt varchar NOT NULL,
  takedownRef varchar, deactivatedAt varchar, deleteAfter varchar);
CREATE TABLE account (did varchar PRIMARY KEY, email varchar NOT NULL,
  passwordScrypt varchar NOT NULL, emailConfirmedAt varchar,
  invitesDisabled int2 NOT NULL DEFAULT 0);
CREATE TABLE app_password (did varchar NOT NULL, name varchar NOT NULL,
  passwordScrypt varchar NOT NULL, createdAt varchar NOT NULL,
  privileged integer NOT NULL DEFAULT 0, PRIMARY KEY (did, name));
CREATE TABLE refresh_token (id varchar PRIMARY KEY, did varchar NOT NULL,
  expiresAt varchar NOT NULL, nextId varchar, appPasswordName varchar);
CREATE TABLE invite_code (code varchar PRIMARY KEY, availableUses integer NOT NULL,
  disabled int2 DEFAULT 0, forAccount varchar NOT NULL, createdBy varchar NOT NULL,
  createdAt varchar NOT NULL);
CREATE TABLE invite_code_use (code varchar NOT NULL, usedBy varchar NOT NULL,
  usedAt varchar NOT NULL, PRIMARY KEY (code, usedBy));
CREATE TABLE token (id integer PRIMARY KEY AUTOINCREMENT, did varchar NOT NULL);
"""
STORE_TABLES = """
CREATE TABLE kysely_migration (name varchar(255) PRIMARY KEY, timestamp varchar(255) NOT NULL);
CREATE TABLE repo_root (did varchar PRIMARY KEY, cid varchar NOT NULL, rev varchar NOT NULL,
  indexedAt varchar NOT NULL);
CREATE TABLE repo_block (cid varchar PRIMARY KEY, repoRev varchar NOT NULL, size integer NOT NULL,
  content blob NOT NULL);
CREATE TABLE record (uri varchar PRIMARY KEY, cid varchar NOT NULL, collection varchar NOT NULL,
  rkey varchar NOT NULL, repoRev varchar NOT NULL, indexedAt varchar NOT NULL,
  takedownRef varchar);
CREATE TABLE blob (cid varchar PRIMARY KEY, mimeType varchar NOT NULL, size integer NOT NULL,
  tempKey varchar, width integer, height integer, createdAt varchar NOT NULL,
  takedownRef varchar);
CREATE TABLE account_pref (id integer PRIMARY KEY AUTOINCREMENT, name varchar NOT NULL,
  valueJson text NOT NULL);
"""
SEQUENCER_TABLES = """
CREATE TABLE kysely_migration (name varchar(255) PRIMARY KEY, timestamp varchar(255) NOT NULL);
CREATE TABLE repo_seq (seq integer PRIMARY KEY AUTOINCREMENT, did varchar NOT NULL,
  eventType varchar NOT NULL, event blob NOT NULL, invalidated int2 NOT NULL DEFAULT 0,
  sequencedAt varchar NOT NULL);
"""
POST = "app.bsky.feed.post"


def instant(us: int) -> str:
    """An instant as JavaScript writes it."""
    text = datetime.fromtimestamp(us / 1_000_000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def scrypt(password: str, salt: str) -> str:
    """A password as the reference stores it."""
    digest = hashlib.scrypt(password.encode(), salt=salt.encode(), n=16384, r=8, p=1, dklen=64)
    return f"{salt}:{digest.hex()}"


def app_password_hash(did: str, password: str) -> str:
    return scrypt(password, hashlib.sha256(did.encode()).digest()[:16].hex())


@dataclass
class SourceAccount:
    """One account: its store, its head and its key."""

    did: Did
    store: sqlite3.Connection
    signer: Signer
    folder: Path
    head: Head | None = None
    blocks: dict[Cid, bytes] = field(default_factory=dict)
    revs: int = 0


class ReferenceFolder:
    """Makes the folder; `close` leaves it as a stopped server does."""

    def __init__(self, folder: Path, now_us: int) -> None:
        self.folder, self.now_us = folder, now_us
        folder.mkdir()
        (folder / "actors").mkdir()
        self.accounts = self._make("account.sqlite", ACCOUNT_TABLES, 7)
        self.sequencer = self._make("sequencer.sqlite", SEQUENCER_TABLES, 1)
        self.stores: dict[str, SourceAccount] = {}
        self.write_env()

    def write_env(self, **more: str) -> None:
        values = {
            "PDS_HOSTNAME": "pds.test",
            "PDS_DATA_DIRECTORY": "/pds",
            "PDS_BLOBSTORE_DISK_LOCATION": "/pds/blocks",
            **more,
        }
        text = "".join(f"{name}={value}\n" for name, value in values.items())
        (self.folder / "pds.env").write_text(text)

    def _make(self, name: str, tables: str, migrations: int) -> sqlite3.Connection:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(file)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(tables)
        for number in range(1, migrations + 1):
            connection.execute("INSERT INTO kysely_migration VALUES (?, '')", (f"{number:03}",))
        connection.commit()
        return connection

    def store_path(self, did: str) -> Path:
        return self.folder / "actors" / hashlib.sha256(did.encode()).hexdigest()[:2] / did

    def add_account(self, name: str, *, password: str = "password", **actor: str) -> SourceAccount:
        did = Did(f"did:plc:{name:a<24}")
        created = instant(self.now_us - 10**12 + len(self.stores))
        values = {"did": did, "handle": f"{name}.pds.test", "createdAt": created, **actor}
        marks = ", ".join("?" * len(values))
        self.accounts.execute(
            f"INSERT INTO actor ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
        )
        self.accounts.execute(
            "INSERT INTO account VALUES (?, ?, ?, ?, 0)",
            (did, f"{name}@mail.test", scrypt(password, "5a" * 16), created),
        )
        folder = self.store_path(did)
        store = self._make(str(folder.relative_to(self.folder) / "store.sqlite"), STORE_TABLES, 1)
        secret = hashlib.sha256(did.encode()).digest()
        (folder / "key").write_bytes(secret)
        account = SourceAccount(did, store, make_signer("k256", secret), folder)
        self.stores[did] = account
        self.emit(did, "identity", {"did": did, "handle": values["handle"]})
        self.emit(did, "account", {"did": did, "active": True})
        finished = self.write(account)
        blocks = [(finished.signed.cid, finished.signed.block)]
        car = encode_car((finished.signed.cid,), blocks)
        self.emit(did, "sync", {"did": did, "rev": finished.head.rev, "blocks": car})
        return account

    def write(self, account: SourceAccount, **records: dict[str, object]) -> FinishedCommit:
        """Commit records by rkey, with its event."""
        writes, added = [], {}
        for rkey, record in records.items():
            block = cbor.encode({"$type": POST, **record})  # type: ignore[dict-item]
            added[f"{POST}/{rkey}"] = (Cid.of_data(block), block)
            path = f"{POST}/{rkey}"
            writes.append(Write("create", path, Cid.of_data(block), block))
        account.revs += 1
        rev = encode_tid(self.now_us - 10**9 + account.revs, 7)
        nodes = ForeignNodes(BlockMap(account.blocks))
        plan = plan_writes(account.head, writes, nodes, did=account.did, rev=rev)
        finished = finish_commit(plan, account.signer)
        new = {**plan.new_nodes, **dict(added.values())}
        new[finished.signed.cid] = finished.signed.block
        for cid in plan.removed_nodes:
            account.store.execute("DELETE FROM repo_block WHERE cid = ?", (str(cid),))
            del account.blocks[cid]
        for cid, block in new.items():
            account.store.execute(
                "INSERT OR IGNORE INTO repo_block VALUES (?, ?, ?, ?)",
                (str(cid), rev, len(block), block),
            )
        account.blocks |= new
        for path, (cid, _) in added.items():
            account.store.execute(
                "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (
                    f"at://{account.did}/{path}",
                    str(cid),
                    *path.split("/"),
                    rev,
                    instant(self.now_us),
                ),
            )
        account.store.execute("DELETE FROM repo_root")
        root = (account.did, str(finished.signed.cid), rev, instant(self.now_us))
        account.store.execute("INSERT INTO repo_root VALUES (?, ?, ?, ?)", root)
        account.head = finished.head
        event = {
            "repo": account.did,
            "commit": finished.signed.cid,
            "rev": rev,
            "since": plan.since,
            "blocks": finished.car,
            "ops": [op.to_data() for op in plan.ops],
            "rebase": False,
            "tooBig": False,
            "blobs": [],
        }
        if plan.prev_data is not None:
            event["prevData"] = plan.prev_data
        self.emit(account.did, "append", event)
        return finished

    def emit(self, did: str, kind: str, event: dict[str, object], *, age_us: int = 0) -> int:
        cursor = self.sequencer.execute(
            "INSERT INTO repo_seq (did, eventType, event, sequencedAt) VALUES (?, ?, ?, ?)",
            (did, kind, cbor.encode(event), instant(self.now_us - age_us)),  # type: ignore[arg-type]
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def add_blob(
        self,
        account: SourceAccount,
        content: bytes,
        *,
        temp_key: str | None = None,
        takedown: str | None = None,
        stored: bytes | None = None,
    ) -> Cid:
        """Note a blob and store its bytes, or others, where they belong."""
        cid = Cid.of_raw(content)
        account.store.execute(
            "INSERT INTO blob VALUES (?, 'image/png', ?, ?, NULL, NULL, ?, ?)",
            (str(cid), len(content), temp_key, instant(self.now_us), takedown),
        )
        root = self.folder / "blocks"
        place = root / account.did / str(cid)
        if temp_key is not None:
            place = root / "tempt" / account.did / temp_key
        elif takedown is not None:
            place = root / "quarantine" / account.did / str(cid)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if stored is None else stored)
        return cid

    def add_preferences(self, account: SourceAccount, *preferences: dict[str, object]) -> None:
        for one in preferences:
            account.store.execute(
                "INSERT INTO account_pref (name, valueJson) VALUES (?, ?)",
                (one["$type"], json.dumps(one)),
            )

    def close(self) -> None:
        """Close all files, which takes their logs away."""
        stores = (account.store for account in self.stores.values())
        for connection in (self.accounts, self.sequencer, *stores):
            connection.commit()
            connection.close()


def blob_record(cid: Cid, size: int) -> dict[str, object]:
    """A record that refers to a blob."""
    blob = {"$type": "blob", "ref": cid, "mimeType": "image/png", "size": size}
    return {"text": "with a picture", "embed": blob}


@asynccontextmanager
async def opened(folder: Path, scratch: Path) -> AsyncIterator[ReferenceHost]:
    settings = read_reference_settings(folder)
    paths = ReferencePaths(settings.account_db, settings.sequencer_db, settings.actors)
    host = ReferenceHost(paths, scratch)
    try:
        yield host
    finally:
        host.close()


def whole_host(folder: Path, now_us: int = START_US) -> ReferenceFolder:
    """A host with one of everything."""
    source = ReferenceFolder(folder, now_us)
    source.emit(
        "did:plc:gone", "account", {"did": "did:plc:gone", "active": True}, age_us=DAY_US * 9
    )
    alice = source.add_account("alice")
    cid = source.add_blob(alice, PICTURE)
    source.write(alice, first={"text": "one"}, second=blob_record(cid, len(PICTURE)))
    source.write(alice, third={"text": "three"})
    source.add_blob(alice, b"uploaded only", temp_key="abcdef")
    source.add_blob(alice, b"left over")
    source.add_preferences(alice, {"$type": "a.b.c#z", "n": 1}, {"$type": "a.b.c#a", "n": 2})
    for number, name in enumerate(("phone", "desk")):
        source.accounts.execute(
            "INSERT INTO app_password VALUES (?, ?, ?, ?, ?)",
            (alice.did, name, app_password_hash(alice.did, f"aaaa-bbbb-cccc-{name}"),
             instant(now_us + number), number),
        )  # fmt: skip
    later = instant(now_us + 50 * DAY_US)
    source.accounts.executemany(
        "INSERT INTO refresh_token VALUES (?, ?, ?, ?, ?)",
        [
            ("old+/=", alice.did, instant(now_us + DAY_US // 24), "next", None),
            ("next", alice.did, later, None, None),
            ("of phone", alice.did, later, None, "phone"),
            ("of nothing", alice.did, later, None, "revoked"),
            ("expired", alice.did, instant(now_us - 1000), None, None),
        ],
    )
    bob = source.add_account(
        "bob", deactivatedAt=instant(now_us - 5), deleteAfter=instant(now_us + DAY_US)
    )
    source.write(bob, hidden={"text": "no"}, shown={"text": "yes"})
    bob.store.execute("UPDATE record SET takedownRef = 'case 1' WHERE rkey = 'hidden'")
    source.emit(bob.did, "account", {"did": bob.did, "active": False, "status": "deactivated"})
    carol = source.add_account("carol", takedownRef="case 2")
    hidden = source.add_blob(carol, b"not to be seen", takedown="case 3")
    source.write(carol, post=blob_record(hidden, 14))
    source.emit(
        "did:plc:gone", "account", {"did": "did:plc:gone", "active": False, "status": "deleted"}
    )
    made = instant(now_us - DAY_US)
    source.accounts.execute(
        "INSERT INTO invite_code VALUES ('code-1', 3, 0, 'admin', 'admin', ?)", (made,)
    )
    source.accounts.executemany(
        "INSERT INTO invite_code_use VALUES ('code-1', ?, ?)",
        [(alice.did, made), ("did:plc:gone", made)],
    )
    (folder / "actors" / "reserved_keys").mkdir()
    (folder / "actors" / "reserved_keys" / "did:plc:coming").write_bytes(b"\x05" * 32)
    return source


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
