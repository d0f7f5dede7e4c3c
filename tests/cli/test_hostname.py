"""What `pds hostname` says, and its exit codes; moves are tested with the service."""

from typing import Any

import click
import pytest

from pds.cli.hostname import EXIT_LATER, EXIT_OWNERS, EXIT_REFUSED, _check_names, _show, exit_code
from pds.services.hostname_change import Outcome

URL = "https://new.example"


def report_of(*entries: dict[str, Any], gave_up: bool = False) -> dict[str, Any]:
    accounts = [{"did": f"did:plc:{n}", "handle": f"h{n}", **e} for n, e in enumerate(entries)]
    counts = {name.value: sum(e["outcome"] == name for e in accounts) for name in Outcome}
    return {"to": URL, "counts": counts, "gaveUp": gave_up, "accounts": accounts}


MOVED = {"outcome": "moved", "newHandle": "new"}
TAKEN = {"outcome": "moved", "conflict": "Handle already taken"}
OWNER = {"outcome": "owner", "todo": "Sign it"}
LATER = {"outcome": "later", "reason": "No answer"}
REFUSED = {"outcome": "refused", "reason": "Not valid"}
ELSEWHERE = {"outcome": "elsewhere", "reason": "It names another"}


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (report_of(), 0),
        (report_of(MOVED, ELSEWHERE, {"outcome": "current"}), 0),
        (report_of(MOVED, OWNER), EXIT_OWNERS),
        (report_of(TAKEN, OWNER), EXIT_REFUSED),
        (report_of(REFUSED, OWNER), EXIT_REFUSED),
        (report_of(REFUSED, LATER), EXIT_LATER),
        (report_of(MOVED, gave_up=True), EXIT_LATER),
    ],
)
def test_the_exit_code_says_what_is_left(report: dict[str, Any], code: int) -> None:
    assert exit_code(report) == code


def test_people_are_told_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(MOVED, TAKEN, OWNER, LATER, REFUSED, ELSEWHERE, gave_up=True)
    report["relays"] = [
        {"url": "https://relay.example", "accepted": False, "error": "banned"},
        {"url": "https://other.example", "accepted": True, "error": None},
    ]
    _show(report, is_dry=False)
    assert capsys.readouterr().out.splitlines() == [
        "did:plc:1 (h1): keeps its handle: Handle already taken",
        "did:plc:2 (h2): owner: Sign it",
        "did:plc:3 (h3): later: No answer",
        "did:plc:4 (h4): refused: Not valid",
        f"{URL}: 2 moved, 1 elsewhere, 1 owner, 1 later, 1 refused",
        "The PLC directory or the server did not answer: run it again to go on",
        "https://relay.example did not take the new name: banned",
    ]
    _show(report_of(MOVED, TAKEN, ELSEWHERE), is_dry=True)
    assert capsys.readouterr().out.splitlines() == [
        "Dry run: nothing was changed. It would be:",
        f"did:plc:0 (h0): to {URL}, handle new",
        f"did:plc:1 (h1): to {URL}; keeps its handle: Handle already taken",
        "did:plc:2 (h2): It names another",
        f"{URL}: 2 moved, 1 elsewhere",
    ]


class Names:
    """A server that is reached under some of its names."""

    def __init__(self, problem: str | None) -> None:
        self.problem = problem

    async def call(self, name: str, fields: Any) -> dict[str, Any]:
        return {"names": [{"url": URL, "problem": self.problem}]}


async def test_nothing_is_moved_to_a_name_that_does_not_lead_here() -> None:
    await _check_names(Names(None))
    with pytest.raises(click.ClickException, match="does not answer"):
        await _check_names(Names("does not answer"))
