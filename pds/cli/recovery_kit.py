"""The kit of a rotation key: a text file for paper, and reading its words again.

The private key exists in this process and in the kit, nowhere else. The words are those of
`protocol/recovery_key`; the QR code holds the same words, for a camera instead of a keyboard.
"""

import os
import re
import secrets
import sys
from pathlib import Path
from typing import Final

import click
import segno

from pds.cli.secret_input import ask_secret, read_line
from pds.protocol.keys import Curve, Signer, generate_secret, make_signer
from pds.protocol.recovery_key import InvalidWords, encode_words, parse_words

WORDS_A_LINE: Final = 6
KIT_START: Final = "The words of the key:"

_HALF_BLOCKS: Final = {
    (False, False): " ",
    (True, False): "\u2580",
    (False, True): "\u2584",
    (True, True): "\u2588",
}
_WORDS: Final = re.compile(r"[a-z]{5}(?:[\s-]+[a-z]{5}){17}")


def new_signer(curve: Curve) -> Signer:
    """Make a key."""
    return make_signer(curve, generate_secret(curve, secrets.token_bytes(64)))


def write_kit(path: Path, signer: Signer, *, did: str, handle: str, host: str) -> None:
    """Write the kit to a new file that only its owner can read, and have it on the disk.

    Raises: ClickException.
    """
    text = _kit_text(signer, did=did, handle=handle, host=host)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from error


def read_signer(kit: Path | None) -> Signer:
    """Return the key of a kit file, or of words that are typed or piped in.

    Raises: ClickException.
    """
    if kit is not None:
        try:
            text = kit.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"{kit} cannot be read: {error}") from error
        found = _WORDS.search(text.partition(KIT_START)[2])
        words = found.group() if found else text
    elif sys.stdin.isatty():
        words = ask_secret("words of your recovery key")
    else:
        words = read_line("line with the words of the recovery key (or --kit FILE)")
    try:
        return parse_words(words)
    except InvalidWords as error:
        raise click.ClickException(str(error)) from error


def _kit_text(signer: Signer, *, did: str, handle: str, host: str) -> str:
    words = encode_words(signer).split("-")
    lines = [words[at : at + WORDS_A_LINE] for at in range(0, len(words), WORDS_A_LINE)]
    return f"""RECOVERY KEY OF @{handle}

Print this page, keep it where nobody else finds it, and delete the file.

Whoever has these words can take the account to another host, whatever {host} does, and
can take back within 72 hours what anybody else does to the identity. Nobody can replace
them: the key is in no other place.

Account      @{handle}
Identity     {did}
Made at      {host}
Public key   {signer.public_key.did_key}

{KIT_START}

{chr(10).join("    " + "  ".join(line) for line in lines)}

Each word is consonant, vowel, consonant, vowel, consonant, of the letters
b d f g h j k l m n p r s t v z and a i o u. The last two check all others.

If the host is gone or does not let you go:   pds rescue start --help
If somebody else has changed your identity:   pds rescue countermand --help

The same words as a QR code:

{_qr_code("-".join(words))}"""


def _qr_code(text: str) -> str:
    """Return a QR code in half blocks, dark as paper needs it."""
    rows = [list(row) for row in segno.make(text.upper(), error="m", micro=False).matrix_iter()]
    rows += [[0] * len(rows[0])] * (len(rows) % 2)
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        pairs = zip(upper, lower, strict=True)
        lines.append("".join(_HALF_BLOCKS[bool(a), bool(b)] for a, b in pairs).rstrip())
    return "\n".join(lines) + "\n"
