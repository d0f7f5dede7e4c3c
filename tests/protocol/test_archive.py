"""The container of archives: a plain tar, and readers that accept nothing but what is written."""

import hashlib
import io
import tarfile
from dataclasses import replace

import pytest

from pds.protocol import archive as fmt
from pds.protocol.archive import ArchiveError, ArchiveReader, Manifest, Member
from pds.protocol.cid import Cid
from pds.protocol.keys import make_signer
from pds.protocol.syntax import Did, Tid

SIGNER = make_signer("k256", b"\x05" * 32)
BLOB = Cid.of_raw(b"blob")
CONTENTS = {
    "account.json": b'{"did": "did:plc:aaaa"}',
    "repo.car": bytes(range(256)) * 5,
    f"blobs/{BLOB}": b"blob",
    "empty.json": b"",
}


def member_of(name: str, content: bytes) -> Member:
    return Member(name, len(content), hashlib.sha256(content).hexdigest())


MANIFEST = Manifest(
    did=Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"),
    handle="alice.test",
    host="https://pds.test",
    created_at="2026-01-01T00:00:00.000Z",
    commit=Cid.of_data(b"commit"),
    rev=Tid("3kqlmcqhx7s2a"),
    members=tuple(
        replace(member_of(name, content), mime_type="image/png" if "blobs" in name else None)
        for name, content in CONTENTS.items()
    ),
    missing_blobs=(Cid.of_raw(b"gone"),),
)


def tar(contents: dict[str, bytes] | list[tuple[str, bytes]], end: bytes = fmt.TAR_END) -> bytes:
    items = contents.items() if isinstance(contents, dict) else contents
    parts = [
        fmt.tar_header(name, len(content), mtime_s=1_700_000_000)
        + content
        + fmt.tar_padding(len(content))
        for name, content in items
    ]
    return b"".join(parts) + end


def reader_of(content: bytes, *, piece: int = 1 << 20) -> ArchiveReader:
    stream = io.BytesIO(content)
    return ArchiveReader(lambda size: stream.read(min(size, piece)))


def read_all(content: bytes, *, piece: int = 1 << 20) -> dict[str, Member]:
    reader = reader_of(content, piece=piece)
    while reader.next() is not None:
        pass
    return reader.members


def test_any_tar_program_opens_an_archive() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar(CONTENTS))) as found:
        members = found.getmembers()
        assert [member.name for member in members] == list(CONTENTS)
        for member in members:
            file = found.extractfile(member)
            assert file is not None
            assert file.read() == CONTENTS[member.name]
            assert (member.mode, member.mtime) == (0o600, 1_700_000_000)


@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_members_are_hashed_whether_or_not_they_are_read(piece: int) -> None:
    assert list(read_all(tar(CONTENTS), piece=piece).values()) == [
        member_of(name, content) for name, content in CONTENTS.items()
    ]
    reader = reader_of(tar(CONTENTS), piece=piece)
    while (member := reader.next()) is not None:
        assert reader.read_all() == CONTENTS[member.name]
    assert reader.members == read_all(tar(CONTENTS))


def test_an_archive_that_is_cut_off_anywhere_is_noticed() -> None:
    whole = tar(CONTENTS)
    for cut in range(0, len(whole), 101):
        with pytest.raises(ArchiveError):
            read_all(whole[:cut])


def test_what_does_not_belong_into_an_archive_is_refused() -> None:
    whole = tar(CONTENTS)
    with pytest.raises(ArchiveError, match="behind the end"):
        read_all(whole + b"more")
    assert read_all(whole + bytes(8192))
    with pytest.raises(ArchiveError, match="at its end"):
        read_all(tar(CONTENTS, end=bytes(512) + b"x" * 512))
    with pytest.raises(ArchiveError, match="twice"):
        read_all(tar([("a.json", b"1"), ("a.json", b"2")]))
    damaged = bytearray(whole)
    damaged[3] ^= 1
    with pytest.raises(ArchiveError, match="damaged"):
        read_all(bytes(damaged))
    with pytest.raises(ArchiveError, match="damaged"):
        read_all(b"\xff" * 512)
    for change in ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"name": "../escape"}):
        info = tarfile.TarInfo("link")
        for name, value in change.items():
            setattr(info, name, value)
        with pytest.raises(ArchiveError, match="does not belong"):
            read_all(info.tobuf(tarfile.USTAR_FORMAT) + fmt.TAR_END)


def test_a_small_member_is_not_read_without_bound() -> None:
    reader = reader_of(tar({"account.json": b"x" * 1000}))
    assert reader.next() is not None
    with pytest.raises(ArchiveError, match="too large"):
        reader.read_all(999)


def test_names_and_sizes_that_a_tar_cannot_say_are_refused() -> None:
    for name, size in (("a" * 101, 1), ("/root", 1), ("a\0b", 1), ("a", 8**11), ("a", -1)):
        with pytest.raises(ArchiveError):
            fmt.tar_header(name, size, mtime_s=0)


def test_a_manifest_comes_back_as_it_was() -> None:
    content = fmt.encode_manifest(MANIFEST)
    assert fmt.parse_manifest(content) == MANIFEST
    assert fmt.parse_manifest(fmt.encode_manifest(replace(MANIFEST, handle=None))).handle is None
    assert list(MANIFEST.blobs) == [BLOB]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"freehold-archive", b"other"),
        (b'"version": 1', b'"version": 2'),
        (b'"did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"', b'"nobody"'),
        (b'"alice.test"', b"7"),
        (b'"alice.test"', b'"alice\\u001b[2J"'),
        (b'"members"', b'"people"'),
        (b'"size": 4', b'"size": true'),
        (b'"size": 4', b'"size": "4"'),
        (b'"mimeType": "image/png"', b'"mimeType": 5'),
        (b'"rev": "3', b'"rev": "!'),
        (b'"commit": "b', b'"commit": "x'),
        (b"{", b"["),
    ],
)
def test_a_manifest_that_is_not_well_formed_is_refused(old: bytes, new: bytes) -> None:
    content = fmt.encode_manifest(MANIFEST)
    assert old in content
    with pytest.raises(ArchiveError):
        fmt.parse_manifest(content.replace(old, new, 1))


def test_deep_json_is_refused_like_any_other_nonsense() -> None:
    with pytest.raises(ArchiveError, match="not JSON"):
        fmt.decode_json(b"[" * 200_000, "account.json")


def test_a_signature_holds_for_these_bytes_only() -> None:
    content = fmt.encode_manifest(MANIFEST)
    signature = fmt.sign_manifest(content, SIGNER)
    assert fmt.verify_manifest(content, signature) == SIGNER.public_key.did_key
    with pytest.raises(ArchiveError, match="does not verify"):
        fmt.verify_manifest(content + b" ", signature)
    for broken in (b"{}", b"[]", signature.replace(b"did:key", b"did:kex"), b'{"key": 1}'):
        with pytest.raises(ArchiveError, match="not well formed"):
            fmt.verify_manifest(content, broken)


def test_the_signature_of_a_manifest_is_good_for_nothing_else() -> None:
    content = fmt.encode_manifest(MANIFEST)
    sig = fmt.decode_json(fmt.sign_manifest(content, SIGNER), "manifest.sig")["sig"]
    from pds.protocol.encodings import decode_base64url

    assert not SIGNER.public_key.verify(decode_base64url(sig), content)


def test_every_difference_between_manifest_and_members_is_named() -> None:
    seen = list(MANIFEST.members)
    plain = [replace(member, mime_type=None) for member in seen]
    assert fmt.check_members(MANIFEST, plain) == []
    assert fmt.check_members(MANIFEST, plain[1:]) == ["account.json is missing"]
    assert fmt.check_members(MANIFEST, [*plain, member_of("more", b"")]) == [
        "more is not in the manifest"
    ]
    changed = [replace(plain[0], sha256="00"), *plain[1:]]
    assert fmt.check_members(MANIFEST, changed) == ["account.json is not what the manifest says"]
    twice = replace(MANIFEST, members=(*seen, seen[0]))
    assert fmt.check_members(twice, plain) == ["the manifest lists a member twice"]


def test_only_blobs_have_the_names_of_blobs() -> None:
    assert fmt.blob_of(fmt.blob_name(BLOB)) == BLOB
    assert fmt.blob_of("blobs/readme.txt") is None
    assert fmt.blob_of("repo.car") is None
