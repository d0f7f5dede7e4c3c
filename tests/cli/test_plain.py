"""Words of strangers on a terminal."""

from typing import Any

import click
import pytest
from click.testing import CliRunner

from pds.cli import migrate
from pds.cli.plain import plain, say

EVIL = "a\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\u202eb\rc\x08\x00\u2028"
SHOWN = "a?[2J?]52;c;ZXZpbA==??31m?b?c???"


def test_nothing_that_steers_a_terminal_is_left() -> None:
    assert plain(EVIL) == SHOWN
    assert plain("one\ntwo \u00fc \U0001f642") == "one\ntwo \u00fc \U0001f642"

    @click.command()
    def command() -> None:
        say(EVIL)
        say(EVIL, err=True)

    result = CliRunner().invoke(command, color=True)
    assert (result.stdout, result.stderr) == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_a_move_is_shown_without_what_its_other_host_wants_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    move: dict[str, Any] = {
        "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz",
        "direction": "in",
        "status": "waiting",
        "step": "approve",
        "progress": {"records": 1, "blobsCopied": 0, "blobsExpected": 0, "preferences": None},
        "rotationKeys": {"kept": [EVIL]},
        "seenBy": [{"service": "https://relay.example", "detail": EVIL}],
        "warnings": [EVIL],
        "document": {"id": EVIL},
        "signIn": {"url": f"https://old.example/{EVIL}"},
        "problem": {"code": "plc_token_needed", "message": EVIL, "nextStep": EVIL},
    }
    assert migrate._show(move, {"as_json": False}) == 13
    shown = capsys.readouterr()
    for line in (shown.out + shown.err).split("\n"):
        assert line.isprintable()
    assert shown.err == f"{SHOWN}.\nNext: {SHOWN}\n"
