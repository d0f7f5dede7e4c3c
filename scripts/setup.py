"""Make the project's virtual environment and install what was asked for, once.

Usage: setup.py [EXTRA ...]   (extras of pyproject.toml: test, check)

Does nothing when the same request was already met for the same pyproject.toml. The accelerators of
the `fast` extra are tried one by one; a machine without a C compiler goes without, with one line.
So are the programs of the `peers` extra when tests are asked for: not every platform has them all.
"""

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "freehold.json"


def requirements_of(extra: str) -> list[str]:
    """Return the requirements of an extra."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["optional-dependencies"][extra])


def pip(*args: str) -> int:
    """Run pip in the environment and return its exit code; its output is kept for failures."""
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        (VENV / "install.log").write_text(done.stdout + done.stderr)
    return done.returncode


def fingerprint() -> str:
    """Return what the installed set depends on: the project's file and the Python version."""
    text = (ROOT / "pyproject.toml").read_bytes() + sys.version.encode()
    return hashlib.sha256(text).hexdigest()


def make_environment() -> None:
    """Create `.venv`, or say what the machine lacks."""
    try:
        venv.create(VENV, with_pip=True, clear=not PYTHON.exists() and VENV.exists())
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(
            f"Could not make a virtual environment ({error}).\n"
            "On Debian and Ubuntu install the package python3-venv, then run the command again."
        )


def main(extras: list[str]) -> None:
    """Bring the environment to the state that `extras` needs."""
    if sys.version_info < (3, 11):
        sys.exit("Freehold needs Python 3.11 or later. Name one: make PYTHON=python3.12 ...")
    have: dict[str, object] = {}
    if STAMP.exists() and PYTHON.exists():
        have = json.loads(STAMP.read_text())
        if have.get("fingerprint") != fingerprint():
            have = {}
    done = set(have.get("extras", []))  # type: ignore[call-overload]
    if have and done >= set(extras):
        return
    wanted = sorted(done | set(extras))
    print("Setting up .venv (the first time takes a minute) ...", flush=True)
    if not PYTHON.exists():
        make_environment()
    target = f"{ROOT}[{','.join(wanted)}]" if wanted else str(ROOT)
    if pip("--editable", target):
        sys.exit(
            f"Installing failed; the last lines of {VENV / 'install.log'}:\n"
            + "\n".join((VENV / "install.log").read_text().splitlines()[-8:])
        )
    missing = [name for name in requirements_of("fast") if pip(name)]
    if missing:
        print(f"Running without the optional accelerators {', '.join(missing)}: slower, not worse.")
    if "test" in wanted:
        missing = [name for name in requirements_of("peers") if pip("--only-binary=:all:", name)]
        if missing:
            print(f"There is no {', '.join(missing)} for this machine: its tests will be skipped.")
    STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "extras": wanted}))


if __name__ == "__main__":
    main(sys.argv[1:])
