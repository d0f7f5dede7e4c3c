"""Write the reference pages that are made from the code; `--check` only says which are stale."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))


def configuration_page() -> str:
    """Return the page of settings."""
    from pds.config import reference_table

    return reference_table()


def methods_page() -> str:
    """Return the page of methods that are served, with the function that answers each."""
    from pds.app import METHOD_TABLES
    from pds.services.lexicons import load_catalog

    catalog = load_catalog()
    rows = []
    for table in METHOD_TABLES:
        for entry in table:
            method = catalog.method(entry.nsid)
            kind = method.kind if method is not None else ""
            place = f"{entry.handler.__module__.replace('.', '/')}.py"
            auth = entry.auth.name.lower().replace("_", " ")
            rows.append(
                f"| {entry.nsid} | {kind} | {auth} | `{place}` `{entry.handler.__name__}` |"
            )
    return (
        "# Methods\n\nMade from the code by `make docs`; `pds routes` prints the same. Every other"
        " method is passed to the service that the caller names, or to the configured AppView.\n\n"
        "| method | kind | credential | answered by |\n|---|---|---|---|\n"
        + "\n".join(sorted(rows))
        + "\n"
    )


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def modules_page() -> str:
    """Return the list of all modules with what each is for."""

    def sections() -> Iterator[str]:
        folders = [ROOT / "pds", *sorted(p for p in (ROOT / "pds").rglob("*") if p.is_dir())]
        for folder in folders:
            modules = [(path, first_sentence(path)) for path in sorted(folder.glob("*.py"))]
            described = [(path, text) for path, text in modules if text]
            if not described:
                continue
            yield f"## {folder.relative_to(ROOT)}\n"
            for path, text in described:
                name = "the package" if path.name == "__init__.py" else f"`{path.name}`"
                yield f"- {name}: {text}"
            yield ""

    return "# Modules\n\nMade from the docstrings by `make docs`.\n\n" + "\n".join(sections())


PAGES = {
    "configuration.md": configuration_page,
    "methods.md": methods_page,
    "modules.md": modules_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check return 1 when one is stale."""
    stale = []
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            stale.append(name)
        else:
            path.write_text(text)
    for name in stale:
        print(f"docs/reference/{name} is stale: run `make docs`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
