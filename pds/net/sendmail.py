"""The door to a `sendmail` program on this machine, as Postfix, Exim and msmtp bring one.

The program gets the mail on its standard input and the addresses as arguments, never through a
shell. It is ended when it takes too long.
"""

import asyncio
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pds.net.mail_errors import MailRejected, MailUnreachable, RecipientRejected

RUN_TIMEOUT_S: Final = 20.0
MAX_DETAIL_BYTES: Final = 2000

NO_USER: Final = 67
NO_HOST: Final = 68
UNAVAILABLE: Final = 69
TRY_LATER: Final = 75
"""Exit codes of mail programs (`sysexits.h`)."""


@dataclass(frozen=True, slots=True)
class SendmailProgram:
    """A program that takes mail, by its path or its name."""

    path: str

    def __str__(self) -> str:
        return self.path


async def run_sendmail(
    program: SendmailProgram,
    *,
    sender: str,
    recipient: str,
    message: bytes,
    timeout_s: float = RUN_TIMEOUT_S,
) -> None:
    """Hand one mail over.

    Raises: MailUnreachable, MailRejected, RecipientRejected. Neither address is in what these say.
    """
    with tempfile.TemporaryFile() as words:  # A pipe would stay open with the program's children.
        try:
            process = await asyncio.create_subprocess_exec(
                program.path, "-i", "-f", sender, "--", recipient,
                stdin=PIPE, stdout=DEVNULL, stderr=words,
            )  # fmt: skip
        except OSError as error:
            raise MailUnreachable(f"{program} cannot be started: {error.strerror}") from error
        try:
            async with asyncio.timeout(timeout_s):
                await _feed(process, message.replace(b"\r\n", b"\n"))
                code = await process.wait()
        except TimeoutError as error:
            raise MailUnreachable(f"{program} did not end in time") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        words.seek(0)
        _judge(program, code, words.read(MAX_DETAIL_BYTES))


async def _feed(process: Process, message: bytes) -> None:
    """Write the mail; a program that ends without reading it says why by its exit code."""
    stdin = process.stdin
    if stdin is None:
        raise AssertionError("a pipe was asked for")
    with suppress(BrokenPipeError, ConnectionResetError, RuntimeError):  # The last is uvloop's.
        stdin.write(message)
        await stdin.drain()
    with suppress(BrokenPipeError, ConnectionResetError, RuntimeError):
        stdin.close()
        await stdin.wait_closed()


def _judge(program: SendmailProgram, code: int, words: bytes) -> None:
    if code == 0:
        return
    detail = words.decode("utf-8", "replace").strip()
    message = f"{program} ended with code {code}"
    if code in (NO_USER, NO_HOST):
        raise RecipientRejected(message, detail=detail)
    if code in (UNAVAILABLE, TRY_LATER) or code < 0:
        raise MailUnreachable(message, detail=detail)
    raise MailRejected(message, detail=detail)
