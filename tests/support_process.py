"""A real server in its own process, started and killed by tests.

`pds serve` runs from the environment alone, as an operator starts it.
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import aiohttp

from tests.support_ports import free_port
from tests.support_postgres import database_of, is_chosen

__all__ = ["ServerProcess", "free_port"]

START_TIMEOUT_S = 60
"""Several processes may start at once, on a machine that does something else."""


def processor_s(pid: int) -> float:
    """The processor time that a process has used so far; 0 where there is no /proc."""
    try:
        times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    except OSError:
        return 0.0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """One data directory and port over any number of starts, stops and kills."""

    def __init__(self, folder: Path, plc_url: str, **settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.process: asyncio.subprocess.Process | None = None
        self.start_times_s: list[float] = []
        self.start_works_s: list[float] = []
        """Processor time of each start, which does not depend on what else the machine does."""
        self.arguments: tuple[str, ...] = ()
        """What else `pds serve` is told."""
        self.start_timeout_s = START_TIMEOUT_S
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PDS_")},
            "PDS_HOSTNAME": "localhost",
            "PDS_PORT": str(self.port),
            "PDS_DATA_DIRECTORY": str(folder),
            "PDS_BLOBSTORE_DISK_LOCATION": str(folder / "blobs"),
            "PDS_DID_PLC_URL": plc_url,
            "PDS_JWT_SECRET": "a secret for tests that is long enough to be one",
            "PDS_ADMIN_PASSWORD": "admin-password-for-tests",
            "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "17" * 32,
            "PDS_SERVICE_HANDLE_DOMAINS": ".test",
            "PDS_DEV_MODE": "true",
            "PDS_DISABLE_SSRF_PROTECTION": "true",
            "PDS_INVITE_REQUIRED": "false",
            "PDS_LEXICON_RESOLUTION": "off",
            "PDS_RATE_LIMITS_ENABLED": "false",
            "PDS_SIGN_IN_LIMITS_ENABLED": "false",
            "LOG_ENABLED": "true",
            **settings,
        }
        if is_chosen():
            self.environment.setdefault("PDS_DATABASE_URL", database_of(folder))

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "server.log").open("ab")
        began = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pds",
            "serve",
            *self.arguments,
            env=self.environment,
            stdout=log,
            stderr=log,
        )
        log.close()
        async with aiohttp.ClientSession() as session:
            while True:
                if (
                    self.process.returncode is not None
                    or time.monotonic() - began > self.start_timeout_s
                ):
                    if self.process.returncode is None:
                        await self.kill()
                    raise AssertionError(f"the server did not start:\n{self.log_tail()}")
                try:
                    async with session.get(f"{self.url}/xrpc/_health") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.01)
        self.start_times_s.append(time.monotonic() - began)
        self.start_works_s.append(processor_s(self.process.pid))

    def log_tail(self, lines: int = 30) -> str:
        text = (self.folder / "server.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def kill(self) -> None:
        """End the server with SIGKILL, as a power switch would."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()
        self.process = None

    async def stop(self) -> int:
        """End the server with SIGTERM and return its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            code = await self.process.wait()
        self.process = None
        return code
