"""What tests of several packages share: where vectors are, and Hypothesis strategies."""

import json
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
