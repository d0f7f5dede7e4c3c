"""Write the reference pages that are made from the code; `--check` only says which are stale."""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from pds.xrpc.access import Access, Refusal


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


LETTERS = {
    "AuthMissing": "M",
    "AuthenticationRequired": "R",
    "InvalidToken": "I",
    "ExpiredToken": "E",
    "AccountNotFound": "N",
    "AccountTakedown": "T",
    "AccountDeactivated": "D",
    "UntrustedIss": "U",
    "BadJwtType": "Y",
    "BadJwtIss": "S",
    "BadJwtAudience": "A",
    "BadJwtLexiconMethod": "L",
    "BadJwtSignature": "G",
    "RepoDeactivated": "d",
    "RepoSuspended": "s",
    "RepoTakendown": "t",
}
"""Short for the answers in the tables of access."""


ACCESS_INTRODUCTION = (
    "Made by `make docs` from what the methods declare (`pds/xrpc/access.py`); the tests ask a"
    " running server for each cell. `+` lets the caller in.\n"
)
ACCESS_CALLERS = (
    "Six signs stand for the states of the caller's account: active, deactivated, suspended, taken"
    " down, deleted, never here. One sign stands for all of them. `narrow` is the session that a"
    " taken-down account may open, also after the takedown was lifted. The moderator is the"
    " configured moderation service; where there is none, no token is trusted: `U`.\n"
)
ACCESS_SUBJECTS = (
    "Methods that speak of an account, by its state: active, deactivated, suspended, taken down."
    " `d` is `RepoDeactivated`, `s` `RepoSuspended`, `t` `RepoTakendown`, each with 400. The last"
    " column is the 400 for accounts that were deleted or never here.\n"
)


def access_page() -> str:
    """Return the page that says how each credential is answered in each state of an account."""
    from pds.app import METHOD_TABLES
    from pds.xrpc.access import OF_ACCOUNTS, PROXIED, REPORT, Credential, State, refusal

    methods = {entry.nsid: entry.access for table in METHOD_TABLES for entry in table}
    methods |= {"com.atproto.moderation.createReport": REPORT, "*every other*": PROXIED}
    answers = {
        answer
        for access in methods.values()
        for credential in Credential
        for state in State
        if (answer := refusal(access, credential, state)) is not None
    }
    rows = []
    for nsid, access in sorted(methods.items()):
        cells = [
            _letters(
                refusal(access, credential, state)
                for state in (State if credential in OF_ACCOUNTS else (State.ACTIVE,))
            )
            for credential in Credential
        ]
        rows.append((nsid, *cells))
    legend = [(f"`{LETTERS[name]}`", status, name) for status, name in sorted(answers)]
    return "\n".join(
        (
            "# Access\n",
            ACCESS_INTRODUCTION,
            *_table(("", "status", "error"), legend),
            "\n## Who may call\n",
            ACCESS_CALLERS,
            *_table(("method", *Credential), rows),
            "\n## About whom\n",
            *_subjects(methods),
            "",
        )
    )


def _subjects(methods: "Mapping[str, Access]") -> Iterator[str]:
    from pds.xrpc.access import GONE, Asker, State, subject_refusal

    yield ACCESS_SUBJECTS
    here = [state for state in State if state not in GONE]
    rows = []
    for nsid, access in sorted(methods.items()):
        if access.subject is None:
            continue
        cells = [
            _letters(subject_refusal(access, asker, state) for state in here) for asker in Asker
        ]
        unknown = access.subject.unknown or "left out"
        if access.subject.asks_elsewhere:
            unknown += "; with a credential as *every other*"
        rows.append((nsid, *cells, unknown))
    yield from _table(("method", *Asker, "not here"), rows)


def _letters(answers: "Iterable[Refusal | None]") -> str:
    letters = "".join("+" if answer is None else LETTERS[answer.name] for answer in answers)
    return f"`{letters[0] if len(set(letters)) == 1 else letters}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(str(cell) for cell in row)} |"


PAGES = {
    "access.md": access_page,
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
