"""Telling a blob's media type from its first bytes.

A blob is stored and served with a type, and browsers act on it, so what the bytes say wins over
what the uploader declared (XRPC-81). Only the signature is looked at: nothing here parses media,
and nothing here makes a file safe; `getBlob` answers with headers that keep it from being rendered.
"""

import re
from collections.abc import Callable
from typing import Final

SNIFF_BYTES: Final = 1024
"""How much of a blob's beginning `sniff_mime_type` wants."""

DEFAULT_MIME_TYPE: Final = "application/octet-stream"
MAX_MIME_TYPE_CHARS: Final = 127 * 2 + 1
"""RFC 6838 allows 127 characters on each side of the slash."""

_DECLARED: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*")

_PREFIXES: Final = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"\xff\x4f\xff\x51", "image/jp2"),
    (b"\xff\x0a", "image/jxl"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "image/jxl"),
    (b"MM\x00\x2a", "image/tiff"),
    (b"II\x2a\x00", "image/tiff"),
)

_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/vnd.avi"}

_BRANDS: Final = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"mif1": "image/heif",
    b"msf1": "image/heif-sequence",
    b"hevc": "image/heic-sequence",
    b"hevx": "image/heic-sequence",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"isom": "video/mp4",
    b"iso2": "video/mp4",
    b"iso4": "video/mp4",
    b"iso5": "video/mp4",
    b"iso6": "video/mp4",
    b"mp41": "video/mp4",
    b"mp42": "video/mp4",
    b"avc1": "video/mp4",
    b"dash": "video/mp4",
    b"MSNV": "video/mp4",
    b"M4V ": "video/x-m4v",
}


def choose_mime_type(head: bytes, declared: str | None) -> str:
    """Return the type of a blob that begins with `head`: the sniffed one, else the declared one.

    A declared type that is missing, malformed or a wildcard counts as `DEFAULT_MIME_TYPE`.
    """
    return sniff_mime_type(head) or parse_declared_type(declared) or DEFAULT_MIME_TYPE


def parse_declared_type(declared: str | None) -> str | None:
    """Return the bare, lower-case type of a Content-Type header, or None if it is unusable."""
    if declared is None:
        return None
    bare = declared.partition(";")[0].strip().lower()
    if len(bare) > MAX_MIME_TYPE_CHARS or not _DECLARED.fullmatch(bare):
        return None
    return bare


def sniff_mime_type(head: bytes) -> str | None:
    """Return the type that the first `SNIFF_BYTES` of a blob show, or None."""
    for prefix, mime_type in _PREFIXES:
        if head.startswith(prefix):
            return mime_type
    for sniff in _SNIFFERS:
        found = sniff(head)
        if found is not None:
            return found
    return None


def _sniff_riff(head: bytes) -> str | None:
    return _RIFF.get(head[8:12]) if head[:4] == b"RIFF" else None


def _sniff_iso_media(head: bytes) -> str | None:
    """ISO base media files start with an `ftyp` box: a major brand, then compatible ones."""
    if head[4:8] != b"ftyp":
        return None
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[at : at + 4] for at in (8, *range(16, size - 3, 4))]
    # A generic picture brand says less than the codec's brand among the compatible ones.
    if brands[0] in (b"mif1", b"msf1"):
        brands.sort(key=lambda brand: brand in (b"mif1", b"msf1"))
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)


def _sniff_matroska(head: bytes) -> str | None:
    if head[:4] != b"\x1aE\xdf\xa3":
        return None
    if b"webm" in head[:64]:
        return "video/webm"
    return "video/matroska" if b"matroska" in head[:64] else None


def _sniff_mpeg_audio(head: bytes) -> str | None:
    """An MPEG audio frame header: 11 sync bits, a valid version, layer III, rate and frequency."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, frequency = head[2] >> 4, head[2] >> 2 & 3
    is_frame = version != 1 and layer == 1 and bit_rate not in (0, 15) and frequency != 3
    return "audio/mpeg" if is_frame else None


def _sniff_svg(head: bytes) -> str | None:
    """Skip what may stand before the root element; by hand, as a regular expression explodes."""
    rest = head[:SNIFF_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    for _ in range(20):
        if rest.startswith(b"<!--"):
            end = b"-->"
        elif rest.startswith((b"<?", b"<!DOCTYPE svg", b"<!doctype svg")):
            end = b">"
        else:
            break
        rest = rest.partition(end)[2].lstrip()
    is_svg = rest[:4].lower() == b"<svg" and (rest[4:5] == b">" or rest[4:5].isspace())
    return "image/svg+xml" if is_svg else None


_SNIFFERS: Final[tuple[Callable[[bytes], str | None], ...]] = (
    _sniff_riff,
    _sniff_iso_media,
    _sniff_matroska,
    _sniff_mpeg_audio,
    _sniff_svg,
)
