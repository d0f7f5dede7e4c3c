"""`pds mail test`: what the operator is told."""

import asyncio
import os

import pytest

from pds.cli import run
from tests.fakes.smtp import smtp_server


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PDS_", "LOG_")):
            monkeypatch.delenv(name)


async def test_test_mail_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with smtp_server() as server:
        monkeypatch.setenv("PDS_EMAIL_SMTP_URL", f"smtp://127.0.0.1:{server.port}")
        monkeypatch.setenv("PDS_EMAIL_FROM_ADDRESS", "noreply@pds.example.com")
        monkeypatch.setenv("PDS_SERVICE_NAME", "Our host")
        assert await asyncio.to_thread(run, ["mail", "test", "op@example.com"]) == 0
        [taken] = server.taken
        assert taken.recipients == ["op@example.com"]
        assert taken.message["Subject"] == "Test mail of Our host"
        assert "Taken over" in capsys.readouterr().out
        server.answers["RCPT"] = "550 5.1.1 <op@example.com> is unknown"
        assert await asyncio.to_thread(run, ["mail", "test", "op@example.com"]) == 1
        error = capsys.readouterr().err
        assert "refused the recipient (550)" in error
        assert "It says: 5.1.1 <op@example.com> is unknown" in error


def test_without_settings_it_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mail", "test", "op@example.com"]) == 2
    assert "PDS_EMAIL_SMTP_URL is not set" in capsys.readouterr().err


def test_nonsense_is_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mail", "test", "op"]) == 2
    assert "not an e-mail address" in capsys.readouterr().err
