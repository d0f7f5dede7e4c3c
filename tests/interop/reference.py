"""The reference PDS as a process, to hold ours against it.

The package is installed by npm; its database driver is compiled once (a C++ compiler is needed, and
about a minute). Peer name for PDS_TEST_REQUIRE: `reference`.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.interop.node import NodeProject, node_project
from tests.support import require
from tests.support_process import free_port

PACKAGES = ["@atproto/pds@0.5.35"]
DRIVER = Path("node_modules/better-sqlite3")
BUILT = DRIVER / "build" / "Release" / "better_sqlite3.node"
BUILD_TIMEOUT_S = 1200
ADMIN_PASSWORD = "admin-password-for-tests"


def reference_project() -> NodeProject:
    """Return a folder in which the reference PDS can run; skips where it cannot."""
    require(
        "reference",
        is_here=shutil.which("c++") is not None and shutil.which("make") is not None,
        hint="a C++ compiler and make are needed",
    )
    project = node_project("reference", PACKAGES, min_node=22)
    if not (project.folder / BUILT).exists():
        _build_driver(project)
    return project


def _build_driver(project: NodeProject) -> None:
    """Compile the database driver against the headers that came with this Node."""
    root = project.node.parent.parent
    gyp = root / "lib" / "node_modules" / "npm" / "node_modules" / "node-gyp" / "bin"
    done = subprocess.run(
        [project.node, gyp / "node-gyp.js", "rebuild", "--release", "--nodedir", root],
        cwd=project.folder / DRIVER,
        env={**os.environ, "PATH": f"{project.node.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    require("reference", is_here=done.returncode == 0, hint=done.stderr.strip()[-500:])


@contextmanager
def running_reference(folder: Path, plc_url: str, **settings: str) -> Iterator[str]:
    """Run a reference PDS with its data in `folder`; the block gets its URL.

    A folder of an earlier run is taken up again.
    """
    project = reference_project()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "PDS_HOSTNAME": "localhost",
        "PDS_PORT": str(free_port()),
        "PDS_DATA_DIRECTORY": str(folder),
        "PDS_BLOBSTORE_DISK_LOCATION": str(folder / "blobs"),
        "PDS_DID_PLC_URL": plc_url,
        "PDS_JWT_SECRET": "a secret for tests that is long enough to be one",
        "PDS_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "23" * 32,
        "PDS_SERVICE_HANDLE_DOMAINS": ".test",
        "PDS_DEV_MODE": "true",
        "PDS_INVITE_REQUIRED": "false",
        "PDS_DISABLE_SSRF_PROTECTION": "true",
        "LOG_ENABLED": "false",
        **settings,
    }
    with project.running("reference_pds.mjs", environment=environment) as url:
        yield url
