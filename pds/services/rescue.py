"""Brings an account here without its old host: from an archive or a repo, and the owner's own key.

The old host may be dead, may refuse, may lie, may have changed the identity. So nothing that it
says counts: the identity is what the PLC directory's log says, verified; the repo is whole and
signed with a key that the identity had; blobs are their own proof. And no service token can be
asked of it: the proof that the owner wants this is the operation that names this host, signed with
a rotation key that the owner holds. Until that is in the directory the account waits here,
deactivated.

1. `prepare` looks at the log, opens the account, imports repo, blobs and preferences, and returns
   the operation that is to be signed. It may be repeated as often as needed;
2. the owner's own program signs it: the key never comes here;
3. `finish` submits it, and activates the account.

In the new identity only the owner's key, further keys that the owner names, and ours remain: what
else was there may be the old host's. If the old host has changed the identity within the last 72
hours, the operation forks off before that, as far as the owner's key stands above the old host's.

`import_archive` is the first half alone: an account of an archive, here, deactivated.

Spec: (ACC-20, ACC-21, ACC-52, ACC-53, ID-55, ID-57, ID-69, ID-70)
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol
from urllib.parse import urlsplit

from pds.errors import NotResolvable, ProtocolError, RemoteError, RequestError
from pds.log import get_logger
from pds.net.http import HttpClient
from pds.protocol import archive as fmt
from pds.protocol.archive import Member
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.keys import InvalidKey, parse_did_key
from pds.protocol.plc import (
    MAX_ROTATION_KEYS,
    PDS_SERVICE_ID,
    PDS_SERVICE_TYPE,
    SIGNING_KEY_ID,
    OperationJson,
    PlcError,
    PlcOperation,
    PlcService,
    make_update,
)
from pds.protocol.plc_log import PlcLog
from pds.protocol.plc_recovery import Fork, find_fork
from pds.protocol.syntax import Did, InvalidSyntax, parse_did
from pds.services.account_creation import AccountCreation, AccountRequest
from pds.services.account_lifecycle import AccountLifecycle
from pds.services.archive_check import ArchiveReport, check_archive, open_archive
from pds.services.audit import Order, note_act
from pds.services.blobs import Blobs
from pds.services.migration_host import RemoteHost
from pds.services.plc_operations import PlcOperations
from pds.services.preferences import Preferences
from pds.services.principal import Principal, PrincipalKind, Scope
from pds.services.repo_import import RepoImports
from pds.store.accounts import Account, get_account_by_did
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn

PAGE: Final = 500
CHUNK_BYTES: Final = 1 << 18
MAX_REPO_BYTES: Final = 2 << 30
MAX_BLOB_BYTES: Final = 1 << 30
MAX_FOLDER_FILES: Final = 1_000_000
FETCH_TIMEOUT_S: Final = 3600.0

_log: Final = get_logger(__name__)


class PlcHistory(Protocol):
    """What this needs of the directory (`pds.identity.did_plc.PlcClient`)."""

    async def get_audit_log(self, did: Did) -> PlcLog:
        """Return the verified log; raises NotResolvable, Unreachable, BadAnswer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """Who shall have an account here; `did` is found in the archive when left out."""

    handle: str
    email: str
    password: str
    did: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the account comes from: an archive, or a repo with blobs in a folder or at a host.

    `repo` is a file or a URL; `blobs` a folder, or the URL of a PDS that has them.
    """

    archive: Path | None = None
    passphrase: str | None = None
    repo: str | None = None
    blobs: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """An account that is here now, deactivated; `missing` counts blobs that are not."""

    account: Account
    missing: int

    def to_json(self) -> dict[str, Any]:
        """Return it for people."""
        return {
            "did": self.account.did,
            "handle": self.account.handle,
            "status": self.account.status.value,
            "missingBlobs": self.missing,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An account that waits for its owner's signature."""

    arrived: Arrived
    fields: OperationJson
    undone: tuple[str, ...]
    dropped_keys: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it for people and for the program that signs."""
        return {
            **self.arrived.to_json(),
            "operation": self.fields,
            "undone": list(self.undone),
            "droppedKeys": list(self.dropped_keys),
        }


class Rescue:
    """Brings accounts here."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        creation: AccountCreation,
        imports: RepoImports,
        blobs: Blobs,
        preferences: Preferences,
        plc: PlcHistory,
        operations: PlcOperations,
        lifecycle: AccountLifecycle,
        http: HttpClient,
        guarded: HttpClient,
    ) -> None:
        """`http` goes where the operator says, `guarded` where the hosts there point to."""
        self._engine = engine
        self._clock = clock
        self._creation = creation
        self._imports = imports
        self._blobs = blobs
        self._preferences = preferences
        self._plc = plc
        self._operations = operations
        self._lifecycle = lifecycle
        self._http = http
        self._guarded = guarded

    async def import_archive(self, newcomer: Newcomer, sources: Sources, order: Order) -> Arrived:
        """Open the account of an archive here, deactivated, with all that the archive holds.

        Raises: RequestError `InvalidRequest`, those of sign-up and import; RemoteError; StoreError.
        """
        if sources.archive is None:
            raise _refused("There is no archive")
        report = await self._check_archive(sources)
        did = self._choose_did(newcomer, report)
        if order.is_rehearsal:
            raise _refused("An import cannot be rehearsed: `pds archive verify` checks the archive")
        account = await self._admit(did, newcomer, order)
        return await self._take_in(account, sources, report)

    async def prepare(
        self,
        newcomer: Newcomer,
        sources: Sources,
        *,
        owner_key: str,
        further_keys: Iterable[str] = (),
        order: Order,
    ) -> Prepared:
        """Bring everything here but the identity, and return the operation to be signed for that.

        Raises: as `import_archive`; `UpstreamFailure`.
        """
        report = None if sources.archive is None else await self._check_archive(sources)
        if report is None and sources.repo is None:
            raise _refused("There is neither an archive nor a repo to take the account from")
        did = self._choose_did(newcomer, report)
        if not did.startswith("did:plc:"):
            raise _refused(
                "A did:web identity needs no rescue: name this host in the document, and import"
                " the archive"
            )
        keys = [_parse_key(key) for key in (owner_key, *further_keys)]
        fork, log = await self._find_fork(did, keys[0])
        if order.is_rehearsal:
            raise _refused("A rescue cannot be rehearsed: nothing is final before it is signed")
        account = await self._admit(did, newcomer, order)
        arrived = await self._take_in(account, sources, report)
        fields, dropped = await self._build(account, fork, log, keys)
        undone = tuple(entry.operation.cid for entry in fork.undone)
        return Prepared(arrived=arrived, fields=fields, undone=undone, dropped_keys=dropped)

    async def finish(self, did: str, operation: Any, order: Order) -> Account:
        """Submit the operation that the owner has signed, and activate the account.

        Raises: RequestError `AccountNotFound`, `InvalidRequest`, `UpstreamFailure`.
        """
        account = await self._engine.read("rescue.account", get_account_by_did, Did(did))
        if account is None:
            raise RequestError("AccountNotFound", "The account is not here: prepare it first", 404)
        if order.is_rehearsal:
            raise _refused("The last step of a rescue cannot be rehearsed")
        await self._operations.submit(account.aid, operation)
        change = await self._lifecycle.activate(account.aid)
        await self._engine.transact("rescue.note", self._note, order, "account.rescue", did)
        _log.info("rescue.finished", did=did)
        return change.after

    # The identity

    async def _find_fork(self, did: Did, owner_key: str) -> tuple[Fork, PlcLog]:
        try:
            log = await self._plc.get_audit_log(did)
        except NotResolvable as error:
            raise _refused("The DID is not registered in the PLC directory") from error
        except RemoteError as error:
            raise RequestError(
                "UpstreamFailure", f"The PLC directory did not answer properly: {error}", 502
            ) from error
        try:
            return find_fork(log, owner_key, self._clock.now_us()), log
        except PlcError as error:
            raise _refused(str(error)) from error

    async def _build(
        self, account: Account, fork: Fork, log: PlcLog, keys: list[str]
    ) -> tuple[OperationJson, tuple[str, ...]]:
        """Return the unsigned operation, and the rotation keys that it leaves out."""
        ours = await self._operations.recommend(account.aid)
        rotation_keys = list(dict.fromkeys((*keys, *(ours.rotation_keys or ()))))
        if len(rotation_keys) > MAX_ROTATION_KEYS:
            raise _refused(f"An identity has at most {MAX_ROTATION_KEYS} rotation keys")
        state = fork.last.state
        methods = {} if state is None else dict(state.verification_methods)
        services = {} if state is None else dict(state.services)
        fields = make_update(
            fork.last,
            rotation_keys=rotation_keys,
            verification_methods={**methods, SIGNING_KEY_ID: ours.signing_key},
            also_known_as=_aliases(fork.last, ours.also_known_as),
            services={**services, PDS_SERVICE_ID: PlcService(PDS_SERVICE_TYPE, ours.endpoint)},
        )
        before = log.state.rotation_keys if log.state is not None else ()
        return fields, tuple(key for key in before if key not in rotation_keys)

    # The account

    async def _check_archive(self, sources: Sources) -> ArchiveReport:
        """Judge the file; the inside of the repo is judged when it is imported."""
        path = sources.archive
        if path is None:
            raise _refused("There is no archive")
        try:
            report = await asyncio.to_thread(
                check_archive, path, passphrase=sources.passphrase, with_repo=False
            )
        except ProtocolError as error:
            raise _refused(str(error)) from error
        except OSError as error:
            raise _refused(f"{path} cannot be read: {error.strerror}") from error
        if not report.is_sound or report.manifest is None:
            raise _refused(f"The archive is not sound: {'; '.join(report.problems)}")
        return report

    def _choose_did(self, newcomer: Newcomer, report: ArchiveReport | None) -> Did:
        found = None if report is None or report.manifest is None else report.manifest.did
        if newcomer.did is not None and found is not None and newcomer.did != found:
            raise _refused(f"The archive is that of another account: {found}")
        try:
            return parse_did(newcomer.did or found or "")
        except InvalidSyntax as error:
            raise _refused("The DID of the account is missing or malformed") from error

    async def _admit(self, did: Did, newcomer: Newcomer, order: Order) -> Account:
        account = await self._creation.admit(
            AccountRequest(
                handle=newcomer.handle,
                email=newcomer.email,
                password=newcomer.password,
                did=did,
            )
        )
        await self._engine.transact("rescue.note", self._note, order, "account.admit", did)
        return account

    def _note(self, txn: Txn, order: Order, act: str, did: str) -> None:
        note_act(txn, order, act, did, now_us=self._clock.now_us())

    async def _take_in(
        self, account: Account, sources: Sources, report: ArchiveReport | None
    ) -> Arrived:
        owner = Principal(
            PrincipalKind.SESSION,
            did=account.did,
            aid=account.aid,
            scope=Scope.ACCESS,
            status=account.status,
        )
        if sources.archive is not None and report is not None and report.manifest is not None:
            await self._take_archive(owner, sources.archive, sources.passphrase, report)
        if sources.repo is not None:
            await self._imports.import_repo(owner, self._read_repo(sources.repo))
        if sources.blobs is not None:
            await self._take_blobs(owner, sources.blobs)
        missing = await self._missing(account.aid)
        _log.info("rescue.arrived", did=account.did, missing_blobs=len(missing))
        return Arrived(account=account, missing=len(missing))

    async def _take_archive(
        self, owner: Principal, path: Path, passphrase: str | None, report: ArchiveReport
    ) -> None:
        types = {} if report.manifest is None else report.manifest.blobs
        missing: set[Cid] | None = None
        with open_archive(path, passphrase) as reader:
            while (member := await asyncio.to_thread(reader.next)) is not None:
                cid = fmt.blob_of(member.name)
                if member.name == fmt.REPO:
                    await self._imports.import_repo(owner, _chunks(reader.read))
                elif member.name == fmt.PREFERENCES:
                    content = await asyncio.to_thread(reader.read_all)
                    await self._put_preferences(owner, fmt.decode_json(content, member.name))
                elif cid is not None:
                    if missing is None:
                        missing = await self._missing(owner.aid or 0)
                    if cid in missing:
                        known = types.get(cid, Member(member.name, member.size, ""))
                        await self._upload(owner, _chunks(reader.read), known.mime_type)

    async def _put_preferences(self, owner: Principal, content: Any) -> None:
        items = content.get("preferences") if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise _refused("The preferences in the archive are not well formed")
        await self._preferences.put(owner, items)

    async def _upload(
        self, owner: Principal, chunks: AsyncIterator[bytes], mime_type: str | None
    ) -> None:
        await self._blobs.upload(owner.aid or 0, chunks, declared_type=mime_type)

    async def _missing(self, aid: int) -> set[Cid]:
        found: set[Cid] = set()
        cursor: str | None = None
        while True:
            page, cursor = await self._blobs.list_missing(aid, cursor=cursor, limit=PAGE)
            found.update(blob.cid for _, blob in page)
            if cursor is None:
                return found

    # Loose parts

    async def _read_repo(self, source: str) -> AsyncIterator[bytes]:
        if _is_url(source):
            async for chunk in self._download(source, MAX_REPO_BYTES):
                yield chunk
            return
        file = await asyncio.to_thread(_open, Path(source))
        with file:
            async for chunk in _chunks(file.read):
                yield chunk

    async def _take_blobs(self, owner: Principal, source: str) -> None:
        missing = await self._missing(owner.aid or 0)
        if not _is_url(source):
            files = await asyncio.to_thread(_find_blobs, Path(source), missing)
            for path in files.values():
                file = await asyncio.to_thread(_open, path)
                with file:
                    await self._upload(owner, _chunks(file.read), None)
            return
        host = RemoteHost(self._http, source, elsewhere=self._guarded)
        for cid in sorted(missing):
            try:
                async with host.open_blob(
                    owner.did or Did(""), str(cid), max_bytes=MAX_BLOB_BYTES
                ) as (chunks, mime_type):
                    await self._upload(owner, chunks, mime_type)
            except RemoteError as error:
                # What is missing in the end is counted; the others may be there.
                _log.warning("rescue.blob_missing", did=owner.did, cid=str(cid), why=str(error))

    async def _download(self, url: str, limit: int) -> AsyncIterator[bytes]:
        async with self._http.request(
            "GET", url, max_bytes=limit, total_timeout_s=FETCH_TIMEOUT_S
        ) as answer:
            if answer.status != 200:
                raise NotResolvable(f"{urlsplit(url).netloc} answered {answer.status}")
            async for chunk in answer.iter_chunks():
                yield chunk


async def _chunks(read: Callable[[int], bytes]) -> AsyncIterator[bytes]:
    """Yield a file in pieces, read on a thread."""
    while chunk := await asyncio.to_thread(read, CHUNK_BYTES):
        yield chunk


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}") from error


def _find_blobs(folder: Path, missing: set[Cid]) -> dict[Cid, Path]:
    """Return which files of a folder hold missing blobs, by their names or else by their hashes."""
    if not folder.is_dir():
        raise _refused(f"{folder} is not a folder")
    found: dict[Cid, Path] = {}
    for number, path in enumerate(folder.rglob("*")):
        if number >= MAX_FOLDER_FILES:
            raise _refused(f"{folder} holds more than {MAX_FOLDER_FILES} files")
        if len(found) == len(missing):
            break
        if not path.is_file():
            continue
        cid = _cid_of_name(path.name) or _cid_of_content(path)
        if cid in missing:
            found[cid] = path
    return found


def _cid_of_name(name: str) -> Cid | None:
    try:
        return parse_cid(name.partition(".")[0])
    except InvalidCid:
        return None


def _cid_of_content(path: Path) -> Cid:
    with path.open("rb") as file:
        return Cid.of_raw_digest(hashlib.file_digest(file, "sha256").digest())


def _aliases(last: PlcOperation, ours: tuple[str, ...]) -> list[str]:
    """Our handle first; the one that the old host has given goes, other aliases stay."""
    old = () if last.state is None else last.state.also_known_as
    first = next((alias for alias in old if alias.startswith("at://")), None)
    rest = [alias for alias in old if alias != first and alias not in ours]
    return [*ours, *rest]


def _parse_key(text: str) -> str:
    try:
        return parse_did_key(text).did_key
    except InvalidKey as error:
        raise _refused("A key is not a did:key of a P-256 or K-256 key") from error


def _is_url(source: str) -> bool:
    return source.startswith(("https://", "http://"))


def _refused(message: str) -> RequestError:
    return RequestError("InvalidRequest", message)
