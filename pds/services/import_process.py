"""Runs `check_import` in a process of its own, so that nobody waits for it.

One process for one repo, nicer than the server. It gets its job as one line on its input and
answers with one line on its output; files travel as open descriptors. When the server ends, however
it does, the input ends, and with it the process.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict
from typing import Any, Final

from pds.errors import Unavailable
from pds.log import get_logger
from pds.protocol.cid import parse_cid
from pds.services.import_check import CheckedRepo, CheckJob, InvalidImport, check_import

NICENESS: Final = 5
TIME_LIMIT_S: Final = 1800.0
"""How long one repo may take; the largest that is taken needs a tenth of it on one core."""

_MAIN: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; from pds.services.import_process import main; main()"
)

_log: Final = get_logger(__name__)


async def check_apart(job: CheckJob, *, time_limit_s: float = TIME_LIMIT_S) -> CheckedRepo:
    """Judge a repo in another process.

    The process is ended when the caller is cancelled. Raises: InvalidImport; Unavailable when it
    could not be started, failed or took too long.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MAIN,
            *sys.path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(*job.sources, job.output),
        )
    except OSError as error:
        raise Unavailable(f"no process to check a repo could be started: {error}") from error
    try:
        async with asyncio.timeout(time_limit_s):
            answer = await _ask(process, job)
    except TimeoutError:
        raise InvalidImport("checking it takes too long") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.shield(process.wait())
    if not answer:
        _log.error("import.process_failed", code=process.returncode)
        raise Unavailable("the process that checks repos has failed")
    return _parse_answer(answer)


async def _ask(process: asyncio.subprocess.Process, job: CheckJob) -> bytes:
    assert process.stdin is not None  # noqa: S101 - both were asked for
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    with contextlib.suppress(ConnectionError):  # Its answer, or that there is none, says more.
        await process.stdin.drain()
    return await process.stdout.readline()


def _parse_answer(answer: bytes) -> CheckedRepo:
    try:
        content: dict[str, Any] = json.loads(answer)
    except ValueError as error:
        raise Unavailable("the process that checks repos has failed") from error
    if "refused" in content:
        raise InvalidImport(content["refused"], is_incomplete=content["is_incomplete"])
    if "failed" in content:
        raise Unavailable(f"a repo could not be checked: {content['failed']}")
    return CheckedRepo(**{**content, "data": parse_cid(content["data"])})


def main() -> None:
    """Do the job that stands on the input."""
    os.nice(NICENESS)
    content = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    job = CheckJob(
        **{**content, "keys": tuple(content["keys"]), "sources": tuple(content["sources"])}
    )
    answer: dict[str, Any]
    try:
        checked = check_import(job)
        answer = {**asdict(checked), "data": str(checked.data)}
    except InvalidImport as error:
        answer = {"refused": str(error), "is_incomplete": error.is_incomplete}
    except OSError as error:
        answer = {"failed": error.strerror}
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
    # Without the clean-up of an interpreter whose other thread is reading.
    os._exit(0)


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)
