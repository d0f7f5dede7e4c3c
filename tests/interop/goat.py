"""goat, Bluesky's command line tool in Go, as one person uses it.

It is no package of any registry: name a built program in PDS_TEST_GOAT. Peer name for
PDS_TEST_REQUIRE: `goat`. Its defaults are hosts of the public network, so every run here names its
directory and host; all that it asks outside loopback is DNS, for the TXT record of a handle under
the reserved `.test`.
"""

import asyncio
import datetime
import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.node import node_project
from tests.interop.test_plc import PACKAGES as PLC_PACKAGES
from tests.support import require

SESSION = "state/goat/auth-session.json"
TIMEOUT_S = 300
VARIABLE = "PDS_TEST_GOAT"


def goat_program() -> str:
    """Return the path of the program; skips where there is none."""
    program = os.environ.get(VARIABLE, "")
    require("goat", is_here=bool(program), hint=f"a built goat in {VARIABLE}")
    return program


@asynccontextmanager
async def running_directory() -> AsyncIterator[str]:
    """Run the real PLC directory server; skips where there is no goat that could ask it."""
    goat_program()
    with node_project("plc", PLC_PACKAGES).running("plc_server.mjs") as url:
        yield url.replace("127.0.0.1", "localhost")


class GoatError(AssertionError):
    """The program ended with an error; the text is what it said."""


class Goat:
    """The program with a folder of its own, which keeps one session and the files it writes."""

    def __init__(self, folder: Path, plc_url: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.program = goat_program()
        self.environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "ATP_PLC_HOST": plc_url,
            "ATP_RELAY_HOST": "ws://127.0.0.1:9",
            "LOG_LEVEL": "warn",
        }

    async def run(self, *arguments: str) -> str:
        """Run one command to its end and return what it printed. Raises: GoatError."""
        process = await self._start(*arguments)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                said, complained = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise GoatError(f"{' '.join(arguments)}: {complained.decode()}{said.decode()}")
        return said.decode()

    async def json(self, *arguments: str) -> Any:
        """Run a command that prints JSON. Raises: GoatError."""
        return json.loads(await self.run(*arguments))

    async def firehose(self, url: str, *arguments: str, count: int) -> tuple[list[Any], list[Any]]:
        """Follow a stream from its oldest event on; return `count` lines and all warnings."""
        process = await self._start(
            "firehose", *("--relay-host", url), *("--cursor", "0"), *arguments
        )
        assert process.stdout is not None
        assert process.stderr is not None
        complaints = asyncio.create_task(process.stderr.read())
        events: list[Any] = []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while len(events) < count and (line := await process.stdout.readline()):
                    events.append(json.loads(line))
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        warnings = [json.loads(line) for line in (await complaints).splitlines()]
        return events, warnings

    def read_session(self) -> Any:
        """Return what is kept of the session."""
        return json.loads((self.folder / SESSION).read_text())

    def write_session(self, session: Any) -> None:
        """Put another session in the place of the one that is kept."""
        self.write(SESSION, session)

    def write(self, name: str, content: Any) -> str:
        """Put bytes, or a value as JSON, into a file for a command to read; return its path."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self.program,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**24,
        )


class HandleWeb:
    """Stands in for the public web: answers `https://<handle>.test/...` out of a server.

    It is a proxy that ends TLS itself, with a certificate that only this test trusts, so that no
    name has to be known to anybody and nothing leaves loopback.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.certificate = folder / "handles.pem"
        self._context = _certify(self.certificate, "*.test")
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve until the block ends."""
        async with aiohttp.ClientSession() as self._http:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with server:
                yield

    def trust(self, goat: Goat) -> None:
        """Make a goat ask here for everything that is not on localhost."""
        goat.environment |= {"HTTPS_PROXY": self.address, "SSL_CERT_FILE": str(self.certificate)}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            verb, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
            assert verb == "CONNECT"
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.start_tls(self._context)
            _, path, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
            headers = {"Host": target.removesuffix(":443")}
            async with self._http.get(self.url + path, headers=headers) as answer:
                content = await answer.read()
                head = f"HTTP/1.1 {answer.status} _\r\nContent-Length: {len(content)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + content)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # It went away, as it may.
        finally:
            writer.close()


def _certify(path: Path, name: str) -> ssl.SSLContext:
    """Write a certificate for `name` with its key; return what serves with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
