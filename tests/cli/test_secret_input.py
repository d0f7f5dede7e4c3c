"""Secrets reach commands by standard input, a file or a terminal, and never as arguments."""

import io
import os
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from pds.cli import MODULES, commands, run
from pds.cli.secret_input import ask_secret, read_line, read_lines, secret_option
from pds.protocol.age import ENTROPY_BYTES, Encryptor

SECRET = "a-secret-that-nobody-may-see"
PASSPHRASE = "a phrase that nobody guesses"

Says = Callable[..., tuple[int, str]]


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Says:
    """Run a command line with some standard input; return the exit code and all that it says."""

    def call(*arguments: str, stdin: str = "") -> tuple[int, str]:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with redirect_stdout(out), redirect_stderr(out):
            code = run(list(arguments))
        return code, out.getvalue()

    return call


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    cipher = Encryptor(PASSPHRASE, entropy=os.urandom(ENTROPY_BYTES), log_work=2)
    file = tmp_path / "archive.tar.age"
    file.write_bytes(cipher.update(b"no tar" * 200) + cipher.finish())
    return file


@pytest.mark.parametrize("option", ["--service-token", "--plc-token", "--sign-in-code"])
def test_a_secret_as_an_argument_is_refused_with_what_to_do(option: str, says: Says) -> None:
    code, text = says("migrate", "in", "alice.test", option, SECRET)
    assert code == 2
    assert f"{option} -" in text
    assert f"{option} @FILE" in text
    assert SECRET not in text


def test_a_url_with_a_password_is_refused_as_an_argument(says: Says) -> None:
    for url in (f"postgresql://me:{SECRET}@db/x", f"postgresql://db/x?password={SECRET}"):
        code, text = says("convert", "database", "--to", url)
        assert (code, "PGPASSWORD" in text, SECRET in text) == (2, True, False)
    code, text = says("convert", "database", "--to", "-", "--dry-run", stdin="mysql://x\n")
    assert (code, "there is no database in" in text) == (2, True), text  # The URL was taken.


def test_no_option_of_any_command_is_an_open_door() -> None:
    """Options whose names speak of secrets are flags, files, or made by `secret_option`."""
    harmless = {"--keep-old-keys", "--keep-key", "--with-key", "--key"}  # did:key, flags
    seen = 0

    def walk(command: click.Command, context: click.Context) -> None:
        nonlocal seen
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(found, context)
            return
        for param in command.params:
            name = param.opts[0]
            words = ("token", "password", "secret", "passphrase", "code", "key")
            if not isinstance(param, click.Option) or not any(word in name for word in words):
                continue
            seen += 1
            is_safe = param.is_flag or isinstance(param.type, click.Path) or name in harmless
            assert is_safe or "@FILE" in str(param.metavar) or name == "--ask-code", (
                command.name,
                name,
            )

    walk(commands, click.Context(commands))
    assert seen > 15
    assert MODULES


def test_lines_come_in_the_order_of_the_options_and_then_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    got: list[object] = []
    (tmp_path / "file").write_text("from a file\n")

    @click.command()
    @secret_option("--one", what="first", help="")
    @secret_option("--two", what="second", help="")
    @secret_option("--three", what="third", help="")
    @secret_option("--code", what="code", help="", is_harmless=True)
    def command(**options: str | None) -> None:
        got.append((options, read_line("password"), read_lines()))

    monkeypatch.setattr(sys, "stdin", io.StringIO("second\nfirst\npass word \nrest\nmore"))
    arguments = ["--two", "-", "--one", "-", "--three", f"@{tmp_path / 'file'}", "--code", "x-y"]
    command.main(arguments, standalone_mode=False)
    options = {"one": "first", "two": "second", "three": "from a file", "code": "x-y"}
    assert got == [(options, "pass word ", ["rest", "more"])]
    with pytest.raises(click.UsageError, match="no first on standard input"):
        command.main(["--one", "-"], standalone_mode=False)
    with pytest.raises(click.ClickException, match="cannot be read: No such file"):
        command.main(["--one", f"@{tmp_path / 'none'}"], standalone_mode=False)
    (tmp_path / "file").write_text("\n")
    with pytest.raises(click.UsageError, match="no first in"):
        command.main(["--one", f"@{tmp_path / 'file'}"], standalone_mode=False)
    with pytest.raises(click.UsageError, match="no terminal to ask for the first: do this"):
        ask_secret("first", otherwise="do this")


def test_a_passphrase_comes_from_standard_input_or_is_missed_with_advice(
    encrypted: Path, says: Says
) -> None:
    verify = ("archive", "verify", str(encrypted))
    code, text = says(*verify)
    assert (code, "--passphrase-file FILE" in text) == (2, True), text
    code, text = says(*verify, "--passphrase-file", "-", stdin="wrong\n")
    assert (code, "not the right one" in text) == (1, True), text
    code, text = says(*verify, "--passphrase-file", "-", stdin=f"{PASSPHRASE}\n")
    assert (code, "not an archive" in text) == (1, True), text
    arguments = ("--handle", "a.test", "--email", "a@x.test")
    code, text = says("archive", "import", __file__, *arguments)
    assert (code, "--password-stdin" in text) == (2, True), text
    code, text = says(
        "rescue", "start", "--archive", __file__, *arguments, "--password-stdin", stdin="pass\n"
    )
    assert (code, "words of the recovery key (or --kit FILE)" in text) == (2, True), text
    code, text = says("rescue", "start", *arguments)
    assert (code, "s3:// address" in text) == (2, True), text


@pytest.mark.parametrize("more", [(), ("--passphrase-file", "-")])
def test_a_terminal_is_asked_without_an_echo(encrypted: Path, more: tuple[str, ...]) -> None:
    """Standard input may be one, too: a line of it would be seen by all who look on."""
    mine, theirs = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pds", "archive", "verify", str(encrypted), *more],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        seen = b""
        while b"Passphrase: " not in seen:
            assert select.select([mine], [], [], 30)[0], seen
            seen += os.read(mine, 4096)
        os.write(mine, PASSPHRASE.encode() + b"\n")
        while b"damaged" not in seen:
            seen += os.read(mine, 4096)
        assert process.wait() == 1
    finally:
        os.close(mine)
    assert b"not an archive" in seen
    assert PASSPHRASE.encode() not in seen
