"""Check the rules of the house that a program can see.

Sizes (a module at most 600 lines, a function at most 80), docstrings that say something, no state
hidden at module level, environment read in one place, no path of one machine. Prints each breach as
`file:line: what`, and exits with 1 when there is one.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE_LINES = 600
MAX_FUNCTION_LINES = 80
MIN_DOCSTRING_CHARS = 15

MUTABLE_CALLS = {"list", "dict", "set", "defaultdict", "OrderedDict", "deque", "bytearray"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|farm|root|home/\w+|tmp/\w+)/")
CONSTANT_NAME = re.compile(r"^_?[A-Z][A-Z0-9_]*$|^__\w+__$")

Breach = tuple[Path, int, str]


def python_files(*folders: str) -> Iterator[Path]:
    """Yield the Python files under `folders` of the project."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def check_sizes(path: Path, tree: ast.Module, text: str) -> Iterator[Breach]:
    """Yield modules and functions that are too long."""
    lines = text.count("\n") + 1
    if lines > MAX_MODULE_LINES:
        yield path, 1, f"module has {lines} lines, at most {MAX_MODULE_LINES}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield path, node.lineno, f"{node.name} has {length} lines"


def check_docstrings(path: Path, tree: ast.Module) -> Iterator[Breach]:
    """Yield modules without a docstring that says what they are for."""
    if path.name == "__init__.py" and not tree.body:
        return
    if len(ast.get_docstring(tree) or "") < MIN_DOCSTRING_CHARS:
        yield path, 1, "module docstring is missing or says nothing"


def check_hidden_state(path: Path, tree: ast.Module) -> Iterator[Breach]:
    """Yield mutable objects that live at module level under a name that is not a constant's."""
    for node in tree.body:
        target: ast.expr
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target = node.target
        else:
            continue
        value = node.value
        if not isinstance(target, ast.Name) or CONSTANT_NAME.match(target.id):
            continue
        mutable = isinstance(value, ast.List | ast.Dict | ast.Set) or (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id in MUTABLE_CALLS
        )
        if mutable:
            yield path, node.lineno, f"{target.id} is mutable state at module level"


def check_environment(path: Path, tree: ast.Module) -> Iterator[Breach]:
    """Yield reads of the environment outside `pds/config.py`."""
    if path == ROOT / "pds" / "config.py" or ROOT / "pds" not in path.parents:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            yield path, node.lineno, "only pds/config.py reads the environment"


def check_machine_paths(path: Path, text: str) -> Iterator[Breach]:
    """Yield mentions of a path that only one machine has."""
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINE_PATH.search(line):
            yield path, number, "names a path of one machine"


def breaches() -> Iterator[Breach]:
    """Yield every breach in the project."""
    for path in python_files("pds", "tests", "scripts", "bench"):
        text = path.read_text()
        tree = ast.parse(text)
        yield from check_sizes(path, tree, text)
        if ROOT / "pds" in path.parents:
            yield from check_docstrings(path, tree)
            yield from check_hidden_state(path, tree)
        yield from check_environment(path, tree)
        if path != Path(__file__).resolve():
            yield from check_machine_paths(path, text)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        yield from check_machine_paths(path, path.read_text())


def main() -> int:
    """Print the breaches and return the exit code."""
    found = list(breaches())
    for path, line, what in found:
        print(f"{path.relative_to(ROOT)}:{line}: {what}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
