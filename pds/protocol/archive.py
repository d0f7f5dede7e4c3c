"""The portable archive: one account in one file, as a tar that says what it holds and proves it.

Members, in this order (docs/explain/archive-format.md):

| member | what |
|---|---|
| `account.json` | DID, handle, host, times |
| `plc-log.json` or `did-document.json` | the audit log of a did:plc; the document of a did:web |
| `repo.car` | the repo in streamable order |
| `preferences.json` | private preferences, only if they were asked for |
| `blobs/<cid>` | one for each blob |
| `manifest.json` | size and SHA-256 of every member above, media types, blobs that were missing |
| `manifest.sig` | the signature of the manifest by the signing key of the repo |

The tar is plain ustar without compression: any `tar` opens it. Both directions need the memory of
one piece and of the manifest. Nothing here does I/O: the writer returns bytes, the reader asks for
them. What is in the members is judged by `services/archive_check`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pds.errors import ProtocolError
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.encodings import InvalidEncoding, decode_base64url, encode_base64url
from pds.protocol.keys import InvalidKey, Signer, parse_did_key
from pds.protocol.syntax import Did, InvalidSyntax, Tid, parse_did, parse_tid

FORMAT: Final = "freehold-archive"
VERSION: Final = 1
ACCOUNT: Final = "account.json"
PLC_LOG: Final = "plc-log.json"
DID_DOCUMENT: Final = "did-document.json"
REPO: Final = "repo.car"
PREFERENCES: Final = "preferences.json"
BLOBS: Final = "blobs/"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"

TAR_BLOCK: Final = 512
MAX_MEMBER_BYTES: Final = 8**11 - 1
"""What ustar can say, 8 GiB: more than the largest repo that is read."""
MAX_SMALL_BYTES: Final = 16 << 20
"""Largest member that is held in memory, save for the manifest."""
MAX_MANIFEST_BYTES: Final = 64 << 20
"""Room for some 300,000 blobs."""
READ_BYTES: Final = 1 << 18

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,98}")
_MAGIC: Final = b"ustar\x0000"
_SIGNED: Final = b"freehold archive manifest 1\n"

Read = Callable[[int], bytes]
"""Returns up to so many bytes; none at the end."""


class ArchiveError(ProtocolError):
    """A file that is not an archive, or one that is damaged."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the manifest lists it; `mime_type` is there for blobs."""

    name: str
    size: int
    sha256: str
    mime_type: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in the manifest."""
        fields: dict[str, Any] = {"name": self.name, "size": self.size, "sha256": self.sha256}
        return fields if self.mime_type is None else {**fields, "mimeType": self.mime_type}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive says it holds."""

    did: Did
    handle: str | None
    host: str
    created_at: str
    commit: Cid
    rev: Tid
    members: tuple[Member, ...]
    missing_blobs: tuple[Cid, ...] = ()

    @property
    def blobs(self) -> dict[Cid, Member]:
        """The blobs in the archive."""
        found = {}
        for member in self.members:
            if (cid := blob_of(member.name)) is not None:
                found[cid] = member
        return found


def encode_json(value: Any) -> bytes:
    """Return the JSON of a member, readable by people."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def decode_json(content: bytes, name: str) -> Any:
    """Read the JSON of a member. Raises: ArchiveError."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{name} is not JSON") from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the member `manifest.json`."""
    return encode_json(
        {
            "format": FORMAT,
            "version": VERSION,
            "did": manifest.did,
            "handle": manifest.handle,
            "host": manifest.host,
            "createdAt": manifest.created_at,
            "repo": {"commit": str(manifest.commit), "rev": manifest.rev},
            "missingBlobs": [str(cid) for cid in manifest.missing_blobs],
            "members": [member.to_json() for member in manifest.members],
        }
    )


def parse_manifest(content: bytes) -> Manifest:
    """Read the member `manifest.json`. Raises: ArchiveError."""
    fields = decode_json(content, MANIFEST)
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise ArchiveError("not an archive of an account")
    if fields.get("version") != VERSION:
        raise ArchiveError(f"an archive of version {fields.get('version')!s:.20} cannot be read")
    try:
        handle = fields["handle"]
        return Manifest(
            did=parse_did(_text(fields["did"])),
            handle=None if handle is None else _shown(handle),
            host=_shown(fields["host"]),
            created_at=_shown(fields["createdAt"]),
            commit=parse_cid(_text(fields["repo"]["commit"])),
            rev=parse_tid(_text(fields["repo"]["rev"])),
            members=tuple(_parse_member(entry) for entry in fields["members"]),
            missing_blobs=tuple(parse_cid(_text(cid)) for cid in fields["missingBlobs"]),
        )
    except (KeyError, TypeError, InvalidSyntax, InvalidCid) as error:
        raise ArchiveError("the manifest of the archive is not well formed") from error


def sign_manifest(content: bytes, signer: Signer) -> bytes:
    """Return the member `manifest.sig` for the bytes of the manifest."""
    sig = encode_base64url(signer.sign(_SIGNED + content))
    return encode_json({"key": signer.public_key.did_key, "sig": sig})


def verify_manifest(content: bytes, signature: bytes) -> str:
    """Return the did:key that signed a manifest; whose it is is for the caller to ask.

    Raises: ArchiveError.
    """
    fields = decode_json(signature, SIGNATURE)
    try:
        key = parse_did_key(_text(fields["key"]))
        sig = decode_base64url(_text(fields["sig"]))
    except (KeyError, TypeError, InvalidKey, InvalidEncoding) as error:
        raise ArchiveError("the signature of the manifest is not well formed") from error
    if not key.verify(sig, _SIGNED + content):
        raise ArchiveError("the signature of the manifest does not verify")
    return key.did_key


def blob_name(cid: Cid) -> str:
    """Return the name of the member that holds a blob."""
    return f"{BLOBS}{cid}"


def blob_of(name: str) -> Cid | None:
    """Return the CID of the blob that a member holds, None for other members."""
    if not name.startswith(BLOBS):
        return None
    try:
        return parse_cid(name.removeprefix(BLOBS))
    except InvalidCid:
        return None


def tar_header(name: str, size: int, *, mtime_s: int) -> bytes:
    """Return what stands before the content of a member."""
    if not _NAME.fullmatch(name) or not 0 <= size <= MAX_MEMBER_BYTES:
        raise ArchiveError(f"{name[:100]} cannot be put into an archive")
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000600\0",
        b"0000000\0",
        b"0000000\0",
        f"{size:011o}\0".encode(),
        f"{mtime_s:011o}\0".encode(),
        b" " * 8,
        b"0",
        bytes(100),
        _MAGIC,
        bytes(247),
    )
    block = b"".join(fields)
    return block[:148] + f"{sum(block):06o}\0 ".encode() + block[156:]


def tar_padding(size: int) -> bytes:
    """Return what stands behind the content of a member."""
    return bytes(-size % TAR_BLOCK)


TAR_END: Final = bytes(2 * TAR_BLOCK)


class ArchiveReader:
    """Walks the members of a tar from its beginning; hashes everything on the way.

    `members` lists what has been read to its end. Only what the format allows is read: regular
    files with names of its own form, each once.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._name = ""
        self._left = 0
        self._size = 0
        self._digest = hashlib.sha256()
        self.members: dict[str, Member] = {}

    def next(self) -> Member | None:
        """Go to the next member (its hash is not known yet), None at the end.

        Raises: ArchiveError.
        """
        self._skip()
        header = self._exactly(TAR_BLOCK)
        if header == bytes(TAR_BLOCK):
            if self._exactly(TAR_BLOCK) != bytes(TAR_BLOCK):
                raise ArchiveError("the archive is not well formed at its end")
            while trailer := self._read(READ_BYTES):
                if trailer.strip(b"\0"):
                    raise ArchiveError("there is something behind the end of the archive")
            return None
        self._name, self._size = _parse_header(header)
        if self._name in self.members:
            raise ArchiveError(f"{self._name} is there twice")
        self._left = self._size
        self._digest = hashlib.sha256()
        return Member(self._name, self._size, "")

    def read(self, size: int = READ_BYTES) -> bytes:
        """Return the next bytes of the current member, none at its end."""
        content = self._read(min(size, self._left)) if self._left else b""
        if self._left and not content:
            raise ArchiveError("the archive is cut off")
        self._left -= len(content)
        self._digest.update(content)
        return content

    def read_all(self, limit: int = MAX_SMALL_BYTES) -> bytes:
        """Return a small member whole. Raises: ArchiveError when it is not small."""
        if self._size > limit:
            raise ArchiveError(f"{self._name} is too large")
        return b"".join(iter(self.read, b""))

    def _skip(self) -> None:
        if not self._name:
            return
        while self.read():
            pass
        self._exactly(-self._size % TAR_BLOCK)
        sha256 = self._digest.hexdigest()
        self.members[self._name] = Member(self._name, self._size, sha256)

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self._read(size - len(found))
            if not piece:
                raise ArchiveError("the archive is cut off")
            found += piece
        return found


def check_members(manifest: Manifest, seen: Sequence[Member]) -> list[str]:
    """Return what differs between the manifest and the members that were read before it."""
    wrong = []
    listed = {member.name: member for member in manifest.members}
    if len(listed) != len(manifest.members):
        wrong.append("the manifest lists a member twice")
    for member in seen:
        known = listed.pop(member.name, None)
        if known is None:
            wrong.append(f"{member.name} is not in the manifest")
        elif (known.size, known.sha256) != (member.size, member.sha256):
            wrong.append(f"{member.name} is not what the manifest says")
    wrong += [f"{name} is missing" for name in listed]
    return wrong


def _parse_header(block: bytes) -> tuple[str, int]:
    try:
        checksum = int(block[148:156].strip(b"\0 "), 8)
        size = int(block[124:136].strip(b"\0 "), 8)
        name = block[:100].rstrip(b"\0").decode("ascii")
    except ValueError as error:
        raise ArchiveError("not an archive, or a damaged one") from error
    if sum(block[:148]) + sum(block[156:]) + 8 * 32 != checksum:
        raise ArchiveError("not an archive, or a damaged one")
    if block[156:157] not in (b"0", b"\0") or not _NAME.fullmatch(name) or block[345:346] != b"\0":
        raise ArchiveError("the archive holds something that does not belong into it")
    return name, size


def _parse_member(entry: Any) -> Member:
    mime_type = entry.get("mimeType")
    size = entry["size"]
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError
    return Member(
        _text(entry["name"]),
        size,
        _text(entry["sha256"]),
        None if mime_type is None else _text(mime_type),
    )


def _shown(value: Any) -> str:
    """Return a text that is shown to people: it must not steer their terminals."""
    if not _text(value).isprintable():
        raise TypeError
    return _text(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
