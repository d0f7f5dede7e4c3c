"""Hold the rule ids that code and tests cite against docs/specs.md.

Fails on an id that is not defined there. Lists the mandatory rules that no code cites and those
that no test cites (`--list` prints them all; otherwise a count a section is printed).
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPECS = ROOT / "docs" / "specs.md"
CITED = re.compile(r"\b(?:DM|REPO|SYNC|XRPC|ID|LEX|ACC|NEW|OAUTH)-\d+\b")
DEFINED = re.compile(r"^\| ([A-Z]+-\d+) \| ([MSRB-]) \|", re.MULTILINE)


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
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
