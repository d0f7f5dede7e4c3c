"""Hold the rule ids and specification headings that the code cites against docs/specs.md.

Fails on an id or a heading (`Spec: page#heading`) that is not listed there. Counts the mandatory
rules that no code and no test cites; `--list` prints them.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "docs" / "specs.md"
CITED = re.compile(r"\b(?:DM|REPO|SYNC|XRPC|ID|LEX|ACC|NEW|OAUTH)-\d+\b")
DEFINED = re.compile(r"^\| ([A-Z]+-\d+) \| ([MSRB-]) \|", re.MULTILINE)
PROMISES = ROOT / "docs" / "explain" / "promises.md"
PROMISE = re.compile(r"[Pp]romises? ([A-D]\d+)\b")
HEADING = re.compile(r"^- `([a-z-]+#[a-z0-9-]+)`$", re.MULTILINE)
SPEC_LINE = re.compile(r"Spec: ([^\n\"]*)")
CITED_HEADING = re.compile(r"[a-z-]+#[a-z0-9-]+")


def unknown_headings() -> list[tuple[str, str]]:
    """Return (heading, file) of each cited heading that is not listed."""
    listed = set(HEADING.findall(SPECS.read_text()))
    found = []
    for path in sorted((ROOT / "pds").rglob("*.py")):
        for line in SPEC_LINE.findall(path.read_text()):
            for heading in CITED_HEADING.findall(line):
                if heading not in listed:
                    found.append((heading, str(path.relative_to(ROOT))))
    return found


def unknown_promises() -> list[tuple[str, str]]:
    """Return (promise, file) of each cited promise that is not listed."""
    listed = set(re.findall(r"^\| ([A-D]\d+) \|", PROMISES.read_text(), re.MULTILINE))
    return [
        (promise, str(path.relative_to(ROOT)))
        for folder in ("pds", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for promise in PROMISE.findall(path.read_text())
        if promise not in listed
    ]


def citations(folder: str) -> dict[str, list[str]]:
    """Return the files of `folder` that cite each id."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix not in {".py", ".mjs", ".js"} or not path.is_file():
            continue
        for rule in set(CITED.findall(path.read_text())):
            found[rule].append(str(path.relative_to(ROOT)))
    return found


def main(arguments: list[str]) -> int:
    """Print what is missing; return 1 when an unknown id is cited."""
    levels = dict(DEFINED.findall(SPECS.read_text()))
    code, tests = citations("pds"), citations("tests")
    unknown = sorted((set(code) | set(tests)) - set(levels))
    for rule in unknown:
        print(f"{rule} is cited but not defined in docs/specs.md: {(code | tests)[rule][0]}")
    headings = unknown_headings()
    for heading, path in headings:
        print(f"{path} names the heading {heading}, which docs/specs.md does not list")
    promises = unknown_promises()
    for promise, path in promises:
        print(f"{path} cites promise {promise}, which docs/explain/promises.md does not list")
    mandatory = [rule for rule, level in levels.items() if level == "M"]
    without_code = [rule for rule in mandatory if rule not in code]
    without_test = [rule for rule in mandatory if rule not in tests]
    without_either = [rule for rule in without_code if rule in without_test]
    print(
        f"{len(levels)} rules, {len(mandatory)} mandatory; "
        f"cited by code {len(mandatory) - len(without_code)}, "
        f"by tests {len(mandatory) - len(without_test)}, by neither {len(without_either)}"
    )
    if "--list" in arguments:
        print("No code:", " ".join(without_code) or "none")
        print("No test:", " ".join(without_test) or "none")
    return 1 if unknown or headings or promises else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
