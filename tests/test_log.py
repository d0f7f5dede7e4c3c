"""Log lines: form, levels, redaction."""

import io
import json
import logging

import pytest

from pds.log import (
    LogSettings,
    RequestLine,
    configure_logging,
    get_logger,
    log_request,
    parse_level,
)
from pds.protocol.cid import Cid

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkaWQ6cGxjOmFiYyJ9.c2lnbmF0dXJl"


@pytest.fixture
def stream():
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in ("aiohttp", "asyncio")}
    yield io.StringIO()
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_and_fields_become_one_json_line(stream):
    configure_logging(LogSettings(), stream)
    get_logger("pds.x").info("blob.collected", count=3, did="did:plc:abc", cid=Cid.of_raw(b""))
    [line] = lines(stream)
    assert line["event"] == "blob.collected"
    assert line["level"] == "info"
    assert line["logger"] == "pds.x"
    assert (line["count"], line["did"]) == (3, "did:plc:abc")
    assert line["cid"].startswith("bafkrei")
    assert line["at"].endswith("Z")


def test_plain_logging_calls_have_the_same_form(stream):
    configure_logging(LogSettings(), stream)
    logging.getLogger("pds.y").warning("relay.slow", extra={"relay": "r.example"})
    [line] = lines(stream)
    assert (line["event"], line["relay"], line["level"]) == ("relay.slow", "r.example", "warning")


def test_secrets_are_redacted_by_field_name_and_by_shape(stream):
    configure_logging(LogSettings(), stream)
    log = get_logger("pds")
    log.info(
        "x",
        access_token="abc",
        password="hunter2",
        email="a@b.example",
        headers={"Authorization": "Bearer abcdefghijkl", "Host": "h"},
        note=f"got {JWT} from client",
        many=[f"Bearer {JWT}"],
        secret_bytes=b"12345678",
    )
    try:
        raise ValueError(f"bad token {JWT}")
    except ValueError as error:
        log.error("failed", exc=error)
    text = stream.getvalue()
    for secret in ("abc", "hunter2", "a@b.example", JWT, "abcdefghijkl", "12345678"):
        assert secret not in text.replace("eyJabc", "")
    first, second = lines(stream)
    assert first["headers"]["Host"] == "h"
    assert "ValueError" in second["traceback"]


def test_text_form_is_one_line_even_for_hostile_values(stream):
    configure_logging(LogSettings(form="text"), stream)
    get_logger("pds").info("x", name="a\nINFO fake", n=1)
    [line] = stream.getvalue().splitlines()
    assert "n=1" in line


def test_a_field_may_have_the_name_of_a_record_attribute(stream):
    configure_logging(LogSettings(), stream)
    get_logger("pds").info("x", name="n", args="a", level="l")
    [line] = lines(stream)
    assert line["name_"] == "n"
    assert line["level"] == "info"


def test_long_values_are_cut(stream):
    configure_logging(LogSettings(), stream)
    get_logger("pds").info("x", value="v" * 100_000)
    assert len(stream.getvalue()) < 3_000


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (LogSettings(level="warn"), ["w", "e"]),
        (LogSettings(level="debug"), ["d", "i", "w", "e"]),
        (LogSettings(level="silent"), []),
        (LogSettings(enabled=False), []),
    ],
)
def test_level_and_enabled_decide_what_is_written(stream, settings, expected):
    configure_logging(settings, stream)
    log = get_logger("pds")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    assert [line["event"] for line in lines(stream)] == expected


def test_unknown_level_is_an_error():
    with pytest.raises(ValueError, match="one of trace"):
        parse_level("loud")


def test_configuring_twice_writes_each_line_once(stream):
    configure_logging(LogSettings(), stream)
    configure_logging(LogSettings(), stream)
    get_logger("pds").info("x")
    assert len(lines(stream)) == 1


def test_request_line_leaves_out_what_is_unknown(stream):
    configure_logging(LogSettings(), stream)
    log = get_logger("pds.xrpc")
    line = RequestLine(
        request_id="r1", method="com.atproto.repo.getRecord", status=200, duration_ms=1.23456
    )
    log_request(log, line)
    log_request(
        log,
        RequestLine(
            request_id="r2", method="m", status=500, duration_ms=2.0, error="InternalServerError"
        ),
    )
    first, second = lines(stream)
    assert first["duration_ms"] == 1.23
    assert "did" not in first
    assert (second["level"], second["error"]) == ("warning", "InternalServerError")


def test_tracebacks_for_malformed_requests_are_dropped(stream):
    from aiohttp.http_exceptions import BadStatusLine

    configure_logging(LogSettings(), stream)
    server = logging.getLogger("aiohttp.server")
    server.error("Error handling request", exc_info=BadStatusLine("x"))
    server.error("Error handling request", exc_info=ValueError("ours"))
    [line] = lines(stream)
    assert "ours" in line["traceback"]


@pytest.mark.parametrize(
    "line",
    [
        RequestLine(request_id="a-1", method="com.x", status=200, duration_ms=1.23456),
        RequestLine(
            request_id="a-2",
            method="com.x",
            status=502,
            duration_ms=12.0,
            did='did:web:"\\\n',
            error="UpstreamFailure",
            database_ms=1.5,
            request_bytes=3,
            response_bytes=4,
            client="::1",
        ),
    ],
)
def test_the_fast_request_line_is_the_same_as_the_slow_one(line, stream):
    configure_logging(LogSettings(), stream)
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if type(handler).__name__ == "_EventHandler"]
    for handlers in (ours, [*ours, logging.NullHandler()]):
        root.handlers[:] = handlers
        log_request(get_logger("pds.request"), line)
    fast, slow = (dict(entry, at=None) for entry in lines(stream))
    assert fast == slow
    assert list(fast) == list(slow)
