"""The sendmail door against real programs: what they get, and what their exit codes mean."""

import asyncio
import sys
from pathlib import Path

import pytest

from pds.net.mail_errors import MailError, MailRejected, MailUnreachable, RecipientRejected
from pds.net.sendmail import SendmailProgram, run_sendmail


def program(folder: Path, body: str) -> SendmailProgram:
    file = folder / "sendmail"
    file.write_text(f"#!{sys.executable}\nimport os, sys, time\n{body}\n")
    file.chmod(0o755)
    return SendmailProgram(str(file))


async def run(
    chosen: SendmailProgram, recipient: str = "alice@mail.test", timeout_s: float = 60.0
) -> None:
    await run_sendmail(
        chosen,
        sender="noreply@pds.test",
        recipient=recipient,
        message=b"Subject: Hello\r\n\r\n.\r\nEnd\r\n",
        timeout_s=timeout_s,
    )


async def test_program_gets_mail_and_addresses_and_no_shell(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    chosen = program(
        tmp_path,
        f"open({str(kept)!r}, 'wb').write(repr(sys.argv[1:]).encode() + sys.stdin.buffer.read())",
    )
    await run(chosen, recipient="-oQ/tmp;$(id)@mail.test")
    assert kept.read_bytes() == (
        b"['-i', '-f', 'noreply@pds.test', '--', '-oQ/tmp;$(id)@mail.test']"
        b"Subject: Hello\n\n.\nEnd\n"
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (67, RecipientRejected),
        (68, RecipientRejected),
        (69, MailUnreachable),
        (75, MailUnreachable),
        (64, MailRejected),
        (1, MailRejected),
    ],
)
async def test_exit_codes(tmp_path: Path, code: int, kind: type[MailError]) -> None:
    chosen = program(tmp_path, f"sys.stderr.write('alice is unknown'); sys.exit({code})")
    with pytest.raises(MailError) as failed:
        await run(chosen)
    assert type(failed.value) is kind
    assert failed.value.detail == "alice is unknown"
    assert "alice" not in str(failed.value)


async def test_program_that_hangs_is_ended(tmp_path: Path) -> None:
    kept = tmp_path / "pid"
    chosen = program(tmp_path, f"open({str(kept)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    with pytest.raises(MailUnreachable, match="in time"):
        await run(chosen, timeout_s=1.0)
    if kept.exists():  # A machine under load may not have come so far.
        assert not Path(f"/proc/{kept.read_text()}").exists()


async def test_program_that_is_not_there() -> None:
    with pytest.raises(MailUnreachable, match="cannot be started"):
        await run(SendmailProgram("/no/such/sendmail"))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_program_that_does_not_read(tmp_path: Path, loop: str, size: int) -> None:
    """The exit code counts, on every event loop that a server runs on."""
    new_loop = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None

    async def act() -> None:
        for code in (0, 75):
            chosen = program(tmp_path, f"os.close(0); sys.stderr.write('full'); sys.exit({code})")
            sending = run_sendmail(
                chosen, sender="a@pds.test", recipient="b@mail.test", message=b"x" * size
            )
            if code == 0:
                await sending
                continue
            with pytest.raises(MailUnreachable, match="code 75") as failed:
                await sending
            assert failed.value.detail == "full"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(act())


async def test_program_that_leaves_a_child_behind_has_ended(tmp_path: Path) -> None:
    going_on = tmp_path / "child"
    child = f"while os.path.exists({str(going_on)!r}): time.sleep(0.1)"
    chosen = program(tmp_path, f"if os.fork() == 0:\n  {child}\nelse: sys.exit(0)")
    going_on.touch()
    try:
        await run(chosen)
    finally:
        going_on.unlink()
