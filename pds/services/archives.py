"""Writes accounts into portable archives: one file each.

The format is `protocol/archive`. A file is written under another name first and is there whole or
not at all; it is readable by nobody but the server's user. Memory is bounded: the repo goes through
an unlinked file beside the target (its size must be known before it is written), blobs piece by
piece, each verified before it goes in. A blob that is missing or damaged here is listed as missing.

What is never in an archive: keys, passwords, sessions, the mail address. Preferences are private
and in it only when asked for. With a passphrase the whole file is encrypted (`protocol/age`).

What is written on a schedule, and where it is kept: `archive_keeping`.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final, Protocol

from pds.errors import BadAnswer, Corrupt, NotResolvable, RemoteError, RequestError
from pds.log import get_logger
from pds.protocol import archive as fmt
from pds.protocol.age import ENTROPY_BYTES, LOG_WORK, Encryptor
from pds.protocol.archive import Manifest, Member
from pds.protocol.car import CarReader
from pds.protocol.cid import Cid
from pds.protocol.commit import Commit, decode_commit
from pds.protocol.diddoc import DidDocument
from pds.protocol.plc_log import PlcLog
from pds.protocol.syntax import Did, format_datetime
from pds.services.account_cache import AccountCache
from pds.services.blobs import Blobs
from pds.services.export_car import write_repo_whole
from pds.services.preferences import Preferences
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.store.accounts import Account
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn, Write
from pds.store.keystore import Keystore
from pds.store.repos import list_account_repos

US_PER_S: Final = 1_000_000
PAGE: Final = 500
LARGE_RECORDS: Final = 2000
"""From here on the repo is read in a process of its own."""

_log: Final = get_logger(__name__)


class PlcHistory(Protocol):
    """What this needs of the directory (`pds.identity.did_plc.PlcClient`)."""

    async def get_audit_log(self, did: Did) -> PlcLog:
        """Return the verified log; raises NotResolvable, Unreachable, BadAnswer."""


class Documents(Protocol):
    """What this needs of `pds.identity.resolver.IdentityResolver`."""

    async def resolve_did(self, did: Did, *, refresh: bool = False) -> DidDocument:
        """Return the document of a DID; raises NotResolvable or Unreachable."""


@dataclass(frozen=True, slots=True)
class Written:
    """One archive that was written."""

    path: Path
    size: int
    manifest: Manifest
    is_encrypted: bool

    def to_json(self) -> dict[str, Any]:
        """Return it for people."""
        return {
            "path": str(self.path),
            "bytes": self.size,
            "did": self.manifest.did,
            "rev": self.manifest.rev,
            "blobs": len(self.manifest.blobs),
            "missingBlobs": len(self.manifest.missing_blobs),
            "encrypted": self.is_encrypted,
        }


@dataclass(slots=True)
class _Draft:
    """What goes into the manifest, as it becomes known."""

    members: list[Member] = field(default_factory=list)
    missing: list[Cid] = field(default_factory=list)


class Archives:
    """Writes archives."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        keystore: Keystore,
        accounts: AccountCache,
        blobs: Blobs,
        preferences: Preferences,
        plc: PlcHistory,
        documents: Documents,
        public_url: str,
        log_work: int = LOG_WORK,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._keystore = keystore
        self._accounts = accounts
        self._blobs = blobs
        self._preferences = preferences
        self._plc = plc
        self._documents = documents
        self._public_url = public_url
        self._log_work = log_work

    async def create(
        self,
        did: str,
        target: Path,
        *,
        passphrase: str | None = None,
        with_preferences: bool = False,
    ) -> Written:
        """Write the archive of an account to `target`, which must not exist yet.

        Raises: RequestError `AccountNotFound`, `InvalidRequest`, `UpstreamFailure`; StoreError.
        """
        account = await self._accounts.get(did)
        if account is None or account.key_id is None:
            raise RequestError("AccountNotFound", "Account not found", 404)
        identity = await self._identity(account.did)
        now_us = self._clock.now_us()
        with _opened(target, now_us // US_PER_S, passphrase, self._log_work) as output:
            draft = _Draft()
            await self._put(output, draft, fmt.ACCOUNT, self._account_member(account, now_us))
            await self._put(output, draft, *identity)
            commit_cid, commit = await self._put_repo(output, draft, account)
            if with_preferences:
                items = await self._preferences.get(_owner(account))
                content = fmt.encode_json({"preferences": items})
                await self._put(output, draft, fmt.PREFERENCES, content)
            await self._put_blobs(output, draft, account)
            manifest = Manifest(
                did=account.did,
                handle=account.handle,
                host=self._public_url,
                created_at=format_datetime(now_us),
                commit=commit_cid,
                rev=commit.rev,
                members=tuple(draft.members),
                missing_blobs=tuple(draft.missing),
            )
            content = fmt.encode_manifest(manifest)
            signer = await self._engine.read("archive.key", self._keystore.signer, account.key_id)
            await self._put(output, draft, fmt.MANIFEST, content)
            await self._put(output, draft, fmt.SIGNATURE, fmt.sign_manifest(content, signer))
            await asyncio.to_thread(output.finish)
        _log.info("archive.written", did=account.did, size=output.size, rev=commit.rev)
        return Written(target, output.size, manifest, passphrase is not None)

    # Members

    async def _identity(self, did: Did) -> tuple[str, bytes]:
        """Return the member that proves which keys are the account's."""
        try:
            if did.startswith("did:plc:"):
                log = await self._plc.get_audit_log(did)
                return fmt.PLC_LOG, fmt.encode_json([entry.to_json(did) for entry in log.entries])
            document = await self._documents.resolve_did(did, refresh=True)
        except NotResolvable as error:
            raise RequestError("InvalidRequest", f"{did} does not resolve") from error
        except (RemoteError, BadAnswer) as error:
            raise RequestError(
                "UpstreamFailure", "The identity could not be looked up, try again later", 502
            ) from error
        return fmt.DID_DOCUMENT, fmt.encode_json(dict(document.source))

    def _account_member(self, account: Account, now_us: int) -> bytes:
        return fmt.encode_json(
            {
                "did": account.did,
                "handle": account.handle,
                "host": self._public_url,
                "status": account.status.value,
                "accountCreatedAt": format_datetime(account.created_at),
                "archivedAt": format_datetime(now_us),
            }
        )

    async def _put(self, output: "_Output", draft: _Draft, name: str, content: bytes) -> None:
        def put() -> None:
            output.begin(name, len(content))
            output.write(content)
            draft.members.append(output.end())

        await asyncio.to_thread(put)

    async def _put_repo(
        self, output: "_Output", draft: _Draft, account: Account
    ) -> tuple[Cid, Commit]:
        with output.spool() as spool:
            await self._engine.stream(
                "archive.repo",
                _writing(spool),
                write_repo_whole,
                account.did,
                None,
                _owner(account),
                apart=await self._engine.read("archive.size", _is_large, account.aid),
            )
            draft.members.append(await asyncio.to_thread(output.copy, fmt.REPO, spool))
            return await asyncio.to_thread(_read_commit, spool)

    async def _put_blobs(self, output: "_Output", draft: _Draft, account: Account) -> None:
        owner = _owner(account)
        missing, cursor = await self._blobs.list_missing(account.aid, limit=PAGE)
        draft.missing += [blob.cid for _, blob in missing]
        while cursor is not None:
            missing, cursor = await self._blobs.list_missing(account.aid, cursor=cursor, limit=PAGE)
            draft.missing += [blob.cid for _, blob in missing]
        known = set(draft.missing)
        after: str | None = None
        while True:
            cids, after = await self._blobs.list_stored(
                account.did, cursor=after, limit=PAGE, principal=owner
            )
            for cid in cids:
                if cid not in known and not await self._put_blob(output, draft, account, cid):
                    draft.missing.append(cid)
            if after is None:
                return

    async def _put_blob(self, output: "_Output", draft: _Draft, account: Account, cid: Cid) -> bool:
        """Write one blob; return False when there is none that is whole."""
        with output.spool() as spool:
            try:
                blob = await self._blobs.open(account.did, str(cid), principal=_owner(account))
                if blob.content is not None:
                    await asyncio.to_thread(spool.write, blob.content)
                else:
                    async for chunk in self._blobs.read(blob, 0, blob.size):
                        await asyncio.to_thread(spool.write, chunk)
            except (RequestError, Corrupt) as error:
                _log.warning("archive.blob_missing", did=account.did, cid=str(cid), why=str(error))
                return False
            member = await asyncio.to_thread(output.copy, fmt.blob_name(cid), spool, blob.mime_type)
            draft.members.append(member)
            return True


class _Output:
    """The file that is being written: members, hashes, and encryption if there is a passphrase."""

    def __init__(self, file: IO[bytes], folder: Path, mtime_s: int, cipher: Encryptor | None):
        self._file = file
        self._folder = folder
        self._mtime_s = mtime_s
        self._cipher = cipher
        self._name = ""
        self._content_bytes = 0
        self._digest = sha256()
        self.size = 0

    def begin(self, name: str, size: int) -> None:
        """Begin a member of a known size."""
        self._emit(fmt.tar_header(name, size, mtime_s=self._mtime_s))
        self._name, self._content_bytes, self._digest = name, 0, sha256()

    def write(self, content: bytes) -> None:
        """Write a part of the member."""
        self._digest.update(content)
        self._content_bytes += len(content)
        self._emit(content)

    def end(self, mime_type: str | None = None) -> Member:
        """End the member."""
        self._emit(fmt.tar_padding(self._content_bytes))
        return Member(self._name, self._content_bytes, self._digest.hexdigest(), mime_type)

    def copy(self, name: str, spool: IO[bytes], mime_type: str | None = None) -> Member:
        """Write a member whose content is in a file."""
        size = spool.tell()
        spool.seek(0)
        self.begin(name, size)
        while chunk := spool.read(fmt.READ_BYTES):
            self.write(chunk)
        return self.end(mime_type)

    def finish(self) -> None:
        """End the archive, and have it on the disk."""
        self._emit(fmt.TAR_END)
        if self._cipher is not None:
            self._raw(self._cipher.finish())
        self._file.flush()
        os.fsync(self._file.fileno())

    def spool(self) -> IO[bytes]:
        """Return an unlinked file beside the target; what it holds is encrypted by nobody."""
        return tempfile.TemporaryFile(dir=self._folder)

    def _emit(self, content: bytes) -> None:
        self._raw(content if self._cipher is None else self._cipher.update(content))

    def _raw(self, content: bytes) -> None:
        self._file.write(content)
        self.size += len(content)


@contextmanager
def _opened(target: Path, mtime_s: int, passphrase: str | None, log_work: int) -> Iterator[_Output]:
    """Open the file under another name; it gets its own when the block ends well."""
    if target.exists():
        raise RequestError("InvalidRequest", f"{target} exists already")
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    cipher = None
    if passphrase is not None:
        entropy = secrets.token_bytes(ENTROPY_BYTES)
        cipher = Encryptor(passphrase, entropy=entropy, log_work=log_work)
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror}"
        raise RequestError("InvalidRequest", message) from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield _Output(file, target.parent, mtime_s, cipher)
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _writing(spool: IO[bytes]) -> Write:
    def write(content: bytes) -> None:
        spool.write(content)

    return write


def _owner(account: Account) -> Principal:
    """Whoever takes the account along: sees all that the owner sees (ACC-44)."""
    return Principal(
        PrincipalKind.SESSION,
        did=account.did,
        aid=account.aid,
        scope=Scope.ACCESS,
        status=account.status,
    )


def _read_commit(spool: IO[bytes]) -> tuple[Cid, Commit]:
    spool.seek(0)
    reader = CarReader()
    while chunk := spool.read(fmt.READ_BYTES):
        for cid, block in reader.feed(chunk):
            return cid, decode_commit(block)  # Our exports begin with it (REPO-43).
    raise Corrupt("an export without a commit")


def _is_large(txn: Txn, aid: int) -> bool:
    rows = list_account_repos(txn, after_aid=aid - 1, limit=1)
    return bool(rows and rows[0].repo and rows[0].repo.record_count >= LARGE_RECORDS)
