"""Reads portable archives and judges them, without a network, a database or a server.

`check_archive` walks a file once: every member against the manifest, the manifest's signature, the
PLC log from its genesis, the repo block by block with the signature of its commit, the blobs
against their CIDs and against what the records refer to. What cannot be said offline is left
unsaid: that the log is the newest, and that no newer repo exists.

Functions here block; services call them on a thread.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pds.errors import ProtocolError
from pds.protocol import archive as fmt
from pds.protocol.age import FIRST_LINE, Decryptor, is_age
from pds.protocol.archive import ArchiveError, ArchiveReader, Manifest, Member
from pds.protocol.car import CarReader
from pds.protocol.cbor import decode
from pds.protocol.cid import Cid
from pds.protocol.commit import decode_commit, verify_commit
from pds.protocol.data import find_blob_refs, find_legacy_blobs
from pds.protocol.diddoc import parse_did_document
from pds.protocol.keys import InvalidKey, parse_did_key
from pds.protocol.plc_log import verify_audit_log
from pds.protocol.repo_verify import StreamedBlocks, VerifiedBlock, verify_repo
from pds.protocol.syntax import Did

MAX_PROBLEMS: Final = 100


class PassphraseNeeded(ArchiveError):
    """The archive is encrypted."""


@dataclass(slots=True)
class ArchiveReport:
    """What an archive holds, and what is wrong with it.

    `missing` are blobs that records refer to and that are not there; `notes` is what people should
    know though nothing is wrong.
    """

    manifest: Manifest | None = None
    is_encrypted: bool = False
    records: int = 0
    repo_bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    has_preferences: bool = False
    missing: list[Cid] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether everything that is there is what it says it is."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        manifest = self.manifest
        return {
            "did": None if manifest is None else manifest.did,
            "handle": None if manifest is None else manifest.handle,
            "host": None if manifest is None else manifest.host,
            "createdAt": None if manifest is None else manifest.created_at,
            "rev": None if manifest is None else manifest.rev,
            "encrypted": self.is_encrypted,
            "records": self.records,
            "repoBytes": self.repo_bytes,
            "blobs": self.blobs,
            "blobBytes": self.blob_bytes,
            "preferences": self.has_preferences,
            "missingBlobs": [str(cid) for cid in self.missing],
            "notes": self.notes,
            "problems": self.problems,
            "sound": self.is_sound,
            "complete": self.is_sound and not self.missing,
        }


@contextmanager
def open_archive(path: Path, passphrase: str | None = None) -> Iterator[ArchiveReader]:
    """Open an archive, encrypted or not.

    Raises: PassphraseNeeded; AgeError, while it is read, for the wrong passphrase; OSError.
    """
    with path.open("rb") as file:
        beginning = file.read(len(FIRST_LINE))
        file.seek(0)
        if not is_age(beginning):
            yield ArchiveReader(file.read)
            return
        if not passphrase:
            raise PassphraseNeeded("the archive is encrypted: its passphrase is needed")
        yield ArchiveReader(_decrypting(file, Decryptor(passphrase)))


def is_encrypted(path: Path) -> bool:
    """Return whether a file asks for a passphrase. Raises: OSError."""
    with path.open("rb") as file:
        return is_age(file.read(len(FIRST_LINE)))


def read_beginning(content: bytes, member: str, size: int, passphrase: str | None) -> Any:
    """Return the first member, a JSON, from the beginning of an archive of `size` bytes.

    Raises: ArchiveError, AgeError; PassphraseNeeded.
    """
    if is_age(content):
        if not passphrase:
            raise PassphraseNeeded("the archive is encrypted: its passphrase is needed")
        cipher = Decryptor(passphrase)
        plain = cipher.update(content)
        content = plain + cipher.finish() if len(content) >= size else plain
    reader = ArchiveReader(io.BytesIO(content).read)
    first = reader.next()
    if first is None or first.name != member:
        raise ArchiveError(f"{member} must come first")
    return fmt.decode_json(reader.read_all(), member)


def check_archive(
    path: Path, *, passphrase: str | None = None, with_repo: bool = True
) -> ArchiveReport:
    """Judge an archive; without `with_repo` the inside of the repo is left to somebody else.

    Raises: PassphraseNeeded, OSError; whatever is wrong with the file is in the report.
    """
    report = ArchiveReport(is_encrypted=is_encrypted(path))
    check = _Check(report, with_repo=with_repo)
    with open_archive(path, passphrase) as reader:
        try:
            check.run(reader)
        except ProtocolError as error:
            check.note_problem(str(error))
    return report


def _decrypting(file: IO[bytes], cipher: Decryptor) -> Callable[[int], bytes]:
    """Return what reads the content of an encrypted file."""
    buffer = bytearray()
    is_done = False

    def read(size: int) -> bytes:
        nonlocal is_done
        while len(buffer) < size and not is_done:
            piece = file.read(fmt.READ_BYTES)
            is_done = not piece
            buffer.extend(cipher.update(piece) if piece else cipher.finish())
        found = bytes(buffer[:size])
        del buffer[:size]
        return found

    return read


class _Check:
    """One walk over an archive."""

    def __init__(self, report: ArchiveReport, *, with_repo: bool) -> None:
        self._report = report
        self._with_repo = with_repo
        self._did: Did | None = None
        self._keys: list[str] = []
        self._commit: tuple[Cid, str] | None = None
        self._referenced: set[Cid] = set()
        self._present: set[Cid] = set()
        self._manifest: bytes | None = None
        self._signature: bytes | None = None

    def note_problem(self, text: str) -> None:
        """Note what is wrong, up to a number of things."""
        problems = self._report.problems
        if len(problems) < MAX_PROBLEMS:
            problems.append(text)
        elif len(problems) == MAX_PROBLEMS:
            problems.append("and more")

    def run(self, reader: ArchiveReader) -> None:
        """Read everything, then hold it against the manifest. Raises: ProtocolError."""
        while (member := reader.next()) is not None:
            self._read_member(member, reader)
        if self._manifest is None or self._signature is None:
            raise ArchiveError("the archive has no manifest: it is not whole")
        self._check_manifest(reader)
        if self._with_repo:
            missing = self._referenced - self._present
            self._report.missing = sorted(missing)
            idle = len(self._present - self._referenced)
            if idle:
                self._report.notes.append(f"{idle} blobs that no record refers to")
        elif self._report.manifest is not None:
            self._report.missing = sorted(self._report.manifest.missing_blobs)

    def _read_member(self, member: Member, reader: ArchiveReader) -> None:
        report = self._report
        if self._manifest is not None and member.name != fmt.SIGNATURE:
            self.note_problem(f"{member.name} comes after the manifest")
        match member.name:
            case fmt.ACCOUNT:
                self._read_account(fmt.decode_json(reader.read_all(), member.name))
            case fmt.PLC_LOG:
                self._keys = self._read_log(fmt.decode_json(reader.read_all(), member.name))
            case fmt.DID_DOCUMENT:
                self._keys = self._read_document(fmt.decode_json(reader.read_all(), member.name))
            case fmt.REPO:
                report.repo_bytes = member.size
                self._read_repo(reader)
            case fmt.PREFERENCES:
                fmt.decode_json(reader.read_all(), member.name)
                report.has_preferences = True
            case fmt.MANIFEST:
                self._manifest = reader.read_all(fmt.MAX_MANIFEST_BYTES)
            case fmt.SIGNATURE:
                self._signature = reader.read_all()
            case _:
                self._read_blob(member, reader)

    def _read_account(self, content: Any) -> None:
        did = content.get("did") if isinstance(content, dict) else None
        if not isinstance(did, str):
            raise ArchiveError(f"{fmt.ACCOUNT} names no DID")
        self._did = Did(did)

    def _read_log(self, content: Any) -> list[str]:
        """Return the signing keys that the identity has had, the newest first."""
        log = verify_audit_log(self._need_did(), content)
        states = [entry.operation.state for entry in reversed(log.active)]
        if states[0] is None:
            self._report.notes.append("the identity was ended by a tombstone")
        found = [s.verification_methods.get("atproto") for s in states if s is not None]
        return list(dict.fromkeys(key for key in found if key is not None))

    def _read_document(self, content: Any) -> list[str]:
        document = parse_did_document(content, self._need_did())
        self._report.notes.append(
            "the key of a did:web can only be checked with the host that publishes it"
        )
        return [] if document.signing_key is None else [document.signing_key.did_key]

    def _read_repo(self, reader: ArchiveReader) -> None:
        if not self._with_repo:
            return
        did = self._need_did()
        if not self._keys:
            raise ArchiveError("the archive does not say which key is the account's")
        try:
            self._walk_repo(did, reader)
        except ProtocolError as error:
            self.note_problem(f"{fmt.REPO}: {error}")

    def _walk_repo(self, did: Did, reader: ArchiveReader) -> None:
        car = CarReader()
        first: list[tuple[Cid, bytes]] = []
        while not car.has_header and (chunk := reader.read()):
            first += car.feed(chunk)
        if len(car.roots) != 1:
            raise ArchiveError("the repo does not have one root")
        blocks = StreamedBlocks(_blocks(first, car, reader))
        for block in verify_repo(car.roots[0], blocks, did=did):
            self._take_block(block)

    def _take_block(self, block: VerifiedBlock) -> None:
        if block.kind == "commit":
            commit = decode_commit(block.block)
            if not any(_is_signed_by(commit, key) for key in self._keys):
                self.note_problem("the repo is not signed with a key of the account")
            elif not _is_signed_by(commit, self._keys[0]):
                self._report.notes.append("the repo is signed with an older key of the account")
            self._commit = (block.cid, commit.rev)
        elif block.kind == "record":
            self._report.records += 1
            content = block.block
            if b"dblob" in content or (b"hmimeType" in content and b"ccid" in content):
                record = decode(content)
                refs = [*find_blob_refs(record), *find_legacy_blobs(record)]
                self._referenced.update(ref.cid for ref in refs if ref.cid.is_blessed_raw)

    def _read_blob(self, member: Member, reader: ArchiveReader) -> None:
        cid = fmt.blob_of(member.name)
        if cid is None:
            self.note_problem(f"{member.name} does not belong into an archive")
            return
        digest = hashlib.sha256()
        while chunk := reader.read():
            digest.update(chunk)
        if Cid.of_raw_digest(digest.digest()) != cid:
            self.note_problem(f"{member.name} is damaged")
            return
        self._present.add(cid)
        self._report.blobs += 1
        self._report.blob_bytes += member.size

    def _check_manifest(self, reader: ArchiveReader) -> None:
        content, signature = self._manifest or b"", self._signature or b""
        manifest = self._report.manifest = fmt.parse_manifest(content)
        seen = [
            member
            for name, member in reader.members.items()
            if name not in (fmt.MANIFEST, fmt.SIGNATURE)
        ]
        for problem in fmt.check_members(manifest, seen):
            self.note_problem(problem)
        if manifest.did != self._did:
            self.note_problem("the manifest is that of another account")
        if self._commit is not None and self._commit != (manifest.commit, manifest.rev):
            self.note_problem("the repo is not the one that the manifest names")
        key = fmt.verify_manifest(content, signature)
        if key not in self._keys:
            self.note_problem("the manifest is not signed with a key of the account")

    def _need_did(self) -> Did:
        if self._did is None:
            raise ArchiveError(f"{fmt.ACCOUNT} must come first")
        return self._did


def _blocks(
    first: list[tuple[Cid, bytes]], car: CarReader, reader: ArchiveReader
) -> Iterator[tuple[Cid, bytes]]:
    yield from first
    while chunk := reader.read():
        yield from car.feed(chunk)
    car.finish()


def _is_signed_by(commit: Any, did_key: str) -> bool:
    try:
        return verify_commit(commit, parse_did_key(did_key))
    except InvalidKey:  # Identities may list keys of kinds that sign no repos.
        return False
