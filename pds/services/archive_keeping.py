"""Writes archives on a schedule, keeps them in a folder, a bucket or both, and finds them again.

Archives are named by DID and rev (`did-plc-abc-3kqlmcqhx7s2a.tar.age`), so a place is only asked
for the one name that is due, and an account that has not changed is not written again. An archive
is written once, on this machine, and goes from there to all places that lack it; in each, older
ones go when `keep` newer ones are there. A place that fails `PATIENCE` times in a row is left alone
until the next round, and the round counts as failed.

After each archive a round rests for as long as that one took, but for `MAX_REST_S` (a minute) at
most: where archives take longer than that, it is at work for more than half of the time. Two nodes
that write at once, after a lease was lost, write the same twice.

`KeptArchives` is the other direction, and needs no database: with the settings of the places alone,
on a machine that has nothing else, archives are listed and fetched.
"""

import asyncio
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pds.blobstore.archives import (
    ArchiveFolder,
    ArchiveMissing,
    ArchivePlace,
    RemoteArchivePlace,
    StoredArchive,
    owner_of,
    write_file,
)
from pds.errors import ProtocolError, RemoteError, RequestError, StoreError, Unavailable
from pds.log import get_logger
from pds.protocol import archive as fmt
from pds.protocol.archive import ArchiveError
from pds.protocol.syntax import Did, InvalidSyntax, Tid, format_datetime, parse_did, parse_tid
from pds.protocol.tid import decode_tid
from pds.services.archive_check import PassphraseNeeded, read_beginning
from pds.services.archive_settings import ArchiveSettings
from pds.services.archives import Archives
from pds.store.clock import Clock
from pds.store.engine import Engine, Txn
from pds.store.repos import AccountRepo, list_account_repos

PAGE: Final = 500
PATIENCE: Final = 3
MAX_REST_S: Final = 60.0
STALE_US: Final = 2 * 86_400 * 1_000_000
"""Age of an unfinished file that nobody writes any more: larger accounts take hours at most."""
BEGINNING_BYTES: Final = 256 << 10
"""Enough for `account.json`, the first member, encrypted or not."""
IN_BUCKET: Final = "s3://"

_NAME: Final = re.compile(r"did-[a-z]+-[A-Za-z0-9._-]+-([2-7a-j][2-7a-z]{12})\.tar(\.age)?")
_log: Final = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeptArchive:
    """One archive that is kept somewhere; `address` names it to commands."""

    place: ArchivePlace
    stored: StoredArchive
    rev: Tid

    @property
    def did(self) -> str:
        """Whose it is, as far as a name of a file can say it: exact for every did:plc."""
        method, _, rest = owner_of(self.stored.name).removeprefix("did-").partition("-")
        return f"did:{method}:{rest.replace('_3A', '%3A')}"

    @property
    def address(self) -> str:
        """Where it is."""
        return self.place.address(self.stored.name)

    @property
    def is_encrypted(self) -> bool:
        """Whether a passphrase is needed."""
        return self.stored.name.endswith(".age")

    def to_json(self) -> dict[str, Any]:
        """Return it for people."""
        return {
            "did": self.did,
            "rev": self.rev,
            "changedAt": format_datetime(decode_tid(self.rev)[0]),
            "bytes": self.stored.size,
            "encrypted": self.is_encrypted,
            "address": self.address,
        }


class ArchiveRounds:
    """Writes the archives that are due."""

    def __init__(
        self,
        *,
        engine: Engine,
        clock: Clock,
        archives: Archives,
        folder: ArchiveFolder | None,
        bucket: RemoteArchivePlace | None,
        work: Path,
        settings: ArchiveSettings,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`work` is a folder of this machine for what goes to the bucket alone."""
        self._engine = engine
        self._clock = clock
        self._archives = archives
        self._folder = folder
        self._bucket = bucket
        self._work = work
        self._sleep = sleep
        self.settings = settings

    async def sweep(self) -> dict[str, int]:
        """Write the archives that are due; what could not be written is tried in the next round.

        Raises: Unavailable when the bucket did not take archives; what the folder took is there.
        """
        counts = {"written": 0, "unchanged": 0, "failed": 0}
        if self._folder is None and self._bucket is None:
            return counts
        await asyncio.to_thread(self._prepare)
        door = _Door(self._bucket)
        after = 0
        while not (self._folder is None and door.is_shut):
            page = await self._engine.read("archive.accounts", _list_accounts, after)
            for row in page:
                counts[await self._write_if_due(row, door)] += 1
                if self._folder is None and door.is_shut:
                    break
            if len(page) < PAGE:
                break
            after = page[-1].aid
        door.judge(counts)
        return counts

    async def _write_if_due(self, row: AccountRepo, door: "_Door") -> str:
        if row.repo is None or not row.is_active:
            return "unchanged"
        name = archive_name(row.did, row.repo.head.rev, is_encrypted=bool(self.settings.passphrase))
        began_s = asyncio.get_running_loop().time()
        try:
            is_due_there = await door.lacks(name)
            is_due_here = self._folder is not None and await self._folder.stat(name) is None
            if not (is_due_here or is_due_there):
                return "unchanged" if door.is_well else "failed"
            async with self._local(row.did, name, is_due=is_due_here) as file:
                if is_due_there:
                    await door.put(name, file)
        except (RequestError, RemoteError, StoreError, OSError) as error:
            # One account must not keep the others from being written; the job's row shows it.
            _log.warning("archive.failed", did=row.did, reason=str(error))
            return "failed"
        for place in (self._folder, self._bucket if is_due_there else None):
            if place is not None:
                await self._drop_old(place, name)
        await self._sleep(min(asyncio.get_running_loop().time() - began_s, MAX_REST_S))
        return "written" if door.is_well else "failed"

    @asynccontextmanager
    async def _local(self, did: Did, name: str, *, is_due: bool) -> AsyncIterator[Path]:
        """Have the archive in the folder, or without one for as long as the block lasts."""
        if self._folder is not None:
            target = self._folder.folder / name
            if is_due:
                await self._create(did, target)
            yield target
            return
        folder = await asyncio.to_thread(tempfile.mkdtemp, dir=self._work)
        try:
            target = Path(folder) / name
            await self._create(did, target)
            yield target
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _create(self, did: Did, target: Path) -> None:
        chosen = self.settings
        await self._archives.create(
            did,
            target,
            passphrase=chosen.passphrase,
            with_preferences=chosen.with_preferences,
        )

    async def _drop_old(self, place: ArchivePlace, newest: str) -> None:
        """Delete all but the newest archives of an account, and never the one just written."""
        found: dict[str, list[str]] = {}
        try:
            async for stored in place.list(owner_of(newest)):
                if (match := _NAME.fullmatch(stored.name)) is not None:
                    found.setdefault(match[1], []).append(stored.name)
            for rev in sorted(found)[: -max(self.settings.keep, 1)]:
                for name in found[rev]:
                    if name != newest:
                        await place.delete(name)
        except StoreError as error:
            # The new one is there. A key that may not delete is a way to keep them all.
            _log.warning("archive.old_kept", place=place.name, reason=str(error))

    def _prepare(self) -> None:
        """Make the folders, and remove what a killed server left in them."""
        target = self._work if self._folder is None else self._folder.folder
        before_us = self._clock.now_us() - STALE_US
        try:
            target.mkdir(parents=True, exist_ok=True, mode=0o700)
            left = [*target.glob(".*.part"), *self._work.glob("tmp*")]
            for path in left:
                if path.lstat().st_mtime_ns // 1000 >= before_us:
                    continue
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"{target} cannot be used for archives: {error}") from error


class _Door:
    """The way to the bucket in one round; shut after some failures in a row, or without one."""

    def __init__(self, bucket: RemoteArchivePlace | None) -> None:
        self._bucket = bucket
        self._failures = 0
        self._reason = ""
        self.is_well = True

    @property
    def is_shut(self) -> bool:
        """Whether nothing is tried any more."""
        return self._bucket is None or self._failures >= PATIENCE

    async def lacks(self, name: str) -> bool:
        """Whether an archive should go to the bucket; False also when that cannot be said."""
        if self._bucket is None or self.is_shut:
            return False
        try:
            is_there = await self._bucket.stat(name) is not None
        except StoreError as error:
            self._note(error)
            return False
        self.is_well = True
        if is_there:
            self._failures = 0
        return not is_there

    async def put(self, name: str, file: Path) -> None:
        """Bring an archive there; a failure is remembered, not raised."""
        if self._bucket is None:
            return
        try:
            await self._bucket.put(name, file)
        except StoreError as error:
            self._note(error)
            return
        self._note(None)

    def _note(self, error: StoreError | None) -> None:
        self.is_well = error is None
        self._failures = 0 if error is None else self._failures + 1
        if error is not None:
            self._reason = str(error)
            _log.warning("archive.bucket_failed", reason=self._reason)

    def judge(self, counts: dict[str, int]) -> None:
        """Fail the round when the bucket was given up. Raises: Unavailable."""
        if self._bucket is not None and self.is_shut:
            raise Unavailable(
                f"{self._bucket.name} takes no archives: {self._reason}"
                f" ({counts['written']} written, {counts['failed']} failed)"
            )


class KeptArchives:
    """Finds archives where they are kept."""

    def __init__(self, places: Sequence[ArchivePlace], *, work: Path | None = None) -> None:
        """`work` is where archives from elsewhere lie while they are read; else the system says."""
        self._places = tuple(places)
        self._work = work

    async def list(self, did: str | None = None) -> list[KeptArchive]:
        """Return all archives, or those of one account, the newest of each account first.

        Raises: RequestError when there are no places; Unavailable.
        """
        if not self._places:
            raise RequestError(
                "InvalidRequest",
                "The settings name no place with archives: set PDS_ARCHIVE_S3_BUCKET and its keys,"
                " or PDS_ARCHIVE_DIRECTORY",
            )
        owner = None if did is None else _owner(did)
        found = []
        for place in self._places:
            async for stored in place.list(owner):
                match = _NAME.fullmatch(stored.name)
                if match is not None:
                    found.append(KeptArchive(place, stored, parse_tid(match[1])))
        found.sort(key=lambda kept: kept.rev, reverse=True)
        found.sort(key=lambda kept: owner_of(kept.stored.name))
        return found

    async def newest(self, account: str, passphrase: str | None = None) -> KeptArchive:
        """Return the newest archive of a DID or a handle; a handle needs a look into archives.

        Raises: RequestError when there is none; PassphraseNeeded; StoreError.
        """
        account = account.removeprefix("@")
        is_did = account.startswith("did:")
        kept = await self.list(account if is_did else None)
        if is_did:
            if kept:
                return kept[0]
            raise RequestError("NotFound", f"There is no archive of {account} in {self.places}")
        unread = 0
        for one in newest_of_each(kept):
            try:
                content = await self.read_account(one, passphrase)
            except PassphraseNeeded:
                raise
            except ProtocolError:
                unread += 1  # Another passphrase, or damaged: it may be the one that is meant.
                continue
            if str(content.get("handle")).lower() == account.lower():
                return one
        raise RequestError(
            "NotFound",
            f"There is no archive of @{account} in {self.places}"
            + (f"; {unread} could not be opened with this passphrase" if unread else "")
            + ": `pds archive list` shows all, by DID",
        )

    async def find(self, address: str) -> KeptArchive:
        """Return the archive at an address.

        Raises: RequestError when the address is not that of a place of ours; StoreError.
        """
        name = address.rpartition("/")[2]
        place = next((p for p in self._places if p.address(name) == address), None)
        match = _NAME.fullmatch(name)
        if place is None or match is None:
            raise RequestError(
                "InvalidRequest",
                f"{address} is in no place of the settings (they have: {self.places or 'none'}):"
                " set PDS_ARCHIVE_S3_BUCKET and PDS_ARCHIVE_S3_FOLDER to where it is; `pds archive"
                " list` shows addresses",
            )
        stored = await place.stat(name)
        if stored is None:
            raise ArchiveMissing(f"there is no {address}: `pds archive list` shows what is there")
        return KeptArchive(place, stored, parse_tid(match[1]))

    async def read_account(self, kept: KeptArchive, passphrase: str | None) -> dict[str, Any]:
        """Return what an archive says of its account, from its beginning; nothing is verified.

        Raises: ArchiveError, AgeError; StoreError.
        """
        chunks = [chunk async for chunk in kept.place.read(kept.stored.name, BEGINNING_BYTES)]
        content = await asyncio.to_thread(
            read_beginning, b"".join(chunks), fmt.ACCOUNT, kept.stored.size, passphrase
        )
        if not isinstance(content, dict):
            raise ArchiveError(f"{fmt.ACCOUNT} is not well formed")
        return content

    async def fetch(self, kept: KeptArchive, target: Path) -> int:
        """Write an archive to a new file that only its owner can read; return its size.

        Raises: RequestError when the file is there or cannot be written; StoreError.
        """
        size = await write_file(target, kept.place.read(kept.stored.name))
        if size != kept.stored.size:
            await asyncio.to_thread(target.unlink)
            raise Unavailable(f"{kept.address} came with {size} of {kept.stored.size} bytes")
        return size

    @asynccontextmanager
    async def at_hand(self, source: str) -> AsyncIterator[Path]:
        """Have an archive as a file of this machine for a while, wherever it is.

        Raises: RequestError when the address is not that of a place of ours; StoreError.
        """
        if not source.startswith(IN_BUCKET):
            yield Path(source)
            return
        kept = await self.find(source)
        if self._work is not None:
            await asyncio.to_thread(self._work.mkdir, parents=True, exist_ok=True, mode=0o700)
        folder = await asyncio.to_thread(tempfile.mkdtemp, dir=self._work)
        try:
            target = Path(folder) / kept.stored.name
            await self.fetch(kept, target)
            yield target
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @property
    def places(self) -> str:
        """Where archives are looked for."""
        return " and ".join(place.name for place in self._places)


def archive_name(did: Did, rev: Tid, *, is_encrypted: bool) -> str:
    """Return the name of the archive of an account as of a rev."""
    return f"{_owner(did)}-{rev}.tar{'.age' if is_encrypted else ''}"


def newest_of_each(kept: Sequence[KeptArchive]) -> list[KeptArchive]:
    """Return the first archive of each account of a list."""
    return list({one.did: one for one in reversed(kept)}.values())[::-1]


def _owner(did: str) -> str:
    try:
        return parse_did(did).replace(":", "-").replace("%", "_")
    except InvalidSyntax as error:
        raise RequestError("InvalidRequest", f"{did} is not a DID") from error


def _list_accounts(txn: Txn, after_aid: int) -> list[AccountRepo]:
    return list_account_repos(txn, after_aid=after_aid, limit=PAGE)
