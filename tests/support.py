"""What tests of several packages share: where vectors are, and which peers a machine has."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
VECTORS = Path(__file__).parent / "vectors"


def interop_dir() -> Path:
    """The published interop files, which lie beside the repository; skips when they are absent."""
    found = ROOT.parent / "shared" / "interop"
    if not found.is_dir():
        pytest.skip("the published interop files are not beside the repository")
    return found


def load_vectors(name: str) -> Any:
    """One of our own vector files."""
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def interop_lines(path: Path) -> list[str]:
    """The values of a line file: comments and blank lines left out, blanks in a line kept."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#")]


def require(peer: str, *, is_here: bool | None = None, hint: str = "") -> None:
    """Skip the test when a program that it talks to is not on this machine.

    Fails instead of skipping when PDS_TEST_REQUIRE names the peer (comma-separated), so that a
    machine that ought to have it cannot pass without it. `is_here` says what was found; by default
    a program of that name is looked for.
    """
    found = shutil.which(peer) is not None if is_here is None else is_here
    if found:
        return
    message = f"{peer} is not here: {hint or 'install it to run this test'}"
    if peer in os.environ.get("PDS_TEST_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)
