"""The same requests to two servers, and where their answers differ.

A `Pair` sends every request to the reference and to ours. Texts in parameters, bodies and
credentials may hold names in braces: `{alice.did}` stands for what each server itself answered.
Compared are the status, the name of the error, and the shape of the JSON: its fields and the kinds
of their values. What differs is noted under the label of the request.
"""

import asyncio
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.interop.reference import ADMIN_PASSWORD

CODE: Final = re.compile(r"\b[A-Z2-7]{5}-[A-Z2-7]{5}\b")
MAIL_TRIES: Final = 60
_NAME: Final = re.compile(r"\{([a-z][\w.-]*)\}")
Fields = Mapping[str, Any]


@dataclass
class Answer:
    """What one server answered."""

    status: int
    headers: Mapping[str, str]
    body: Any
    is_json: bool

    @property
    def error(self) -> str | None:
        """The name of the error, if it is one."""
        if self.status < 400 or not isinstance(self.body, dict):
            return None
        return self.body.get("error")

    def summary(self, opaque: frozenset[str]) -> tuple[Any, ...]:
        """What is compared."""
        if self.status >= 400:
            return (self.status, self.error)
        if not self.is_json:
            return (self.status, self.headers.get("Content-Type", "").partition(";")[0])
        return (self.status, shape(self.body, opaque))


def shape(value: Any, opaque: frozenset[str] = frozenset()) -> Any:
    """The fields of a JSON value and the kinds of their values; lists as the shapes in them.

    What lies under the keys in `opaque` is not looked into, nor DID documents: they are the
    directory's.
    """
    match value:
        case dict():
            return {
                key: "..." if key in opaque or key == "didDoc" else shape(inner, opaque)
                for key, inner in sorted(value.items())
            }
        case list():
            shapes = {json.dumps(shape(inner, opaque), sort_keys=True) for inner in value}
            return [json.loads(text) for text in sorted(shapes)]
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case _:
            return "null"


@dataclass
class Side:
    """One of the two servers, with what it has told so far."""

    name: str
    url: str
    names: dict[str, Any] = field(default_factory=dict)
    mails: list[tuple[str, str]] = field(default_factory=list)

    def fill(self, value: Any) -> Any:
        """Put this server's own values where names in braces are."""
        match value:
            case str():
                whole = _NAME.fullmatch(value)
                if whole is not None:
                    return self.names[whole[1]]
                return _NAME.sub(lambda found: str(self.names[found[1]]), value)
            case dict():
                return {key: self.fill(inner) for key, inner in value.items()}
            case list():
                return [self.fill(inner) for inner in value]
            case _:
                return value

    def take_code(self, address: str) -> str | None:
        """Return the code in the newest mail to an address, and forget that mail."""
        for number, (recipient, text) in reversed(list(enumerate(self.mails))):
            found = CODE.search(text)
            if recipient == address and found is not None:
                del self.mails[number]
                return found[0]
        return None


@dataclass
class Pair:
    """Both servers. `differences` maps labels to (reference, ours)."""

    session: aiohttp.ClientSession
    reference: Side
    ours: Side
    differences: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    count: int = 0
    labels: set[str] = field(default_factory=set)

    @property
    def sides(self) -> tuple[Side, Side]:
        """The reference, and ours."""
        return self.reference, self.ours

    async def get(self, label: str, nsid: str, params: Fields | None = None, **more: Any) -> None:
        """Send a query to both; see `request`."""
        await self.request(label, nsid, params=params, **more)

    async def post(self, label: str, nsid: str, body: Any = None, **more: Any) -> None:
        """Send a procedure to both; see `request`."""
        await self.request(label, nsid, verb="POST", body=body, **more)

    async def request(
        self,
        label: str,
        nsid: str,
        *,
        verb: str = "GET",
        params: Fields | None = None,
        body: Any = None,
        auth: str | None = None,
        headers: Mapping[str, str] | None = None,
        save: Mapping[str, str | Callable[[Any], Any]] | None = None,
        opaque: frozenset[str] = frozenset(),
    ) -> None:
        """Send one request to both, and note where the answers differ.

        `auth` is the name of an account whose access token is sent, `admin`, or a whole header in
        braces or not. `save` keeps parts of the answers: name -> key or function of the body.
        """
        assert label not in self.labels, f"two requests are called {label}"
        self.labels.add(label)
        self.count += 1
        answers = await asyncio.gather(
            *(
                self._send(
                    side,
                    nsid,
                    verb,
                    params=params,
                    body=body,
                    headers=self._sent(side, auth, headers),
                )
                for side in self.sides
            )
        )
        seen = [answer.summary(opaque) for answer in answers]
        if seen[0] != seen[1]:
            self.differences[label] = tuple(
                (*summary, answer.body if answer.status >= 400 else "")
                for summary, answer in zip(seen, answers, strict=True)
            )  # type: ignore[assignment]
        for side, answer in zip(self.sides, answers, strict=True):
            for name, take in (save or {}).items():
                try:
                    side.names[name] = take(answer.body) if callable(take) else answer.body[take]
                except (KeyError, TypeError, IndexError):
                    self.differences.setdefault(label, (f"no {name}", side.name))
                    side.names.setdefault(name, "missing")

    async def sign_up(self, name: str, **more: Any) -> None:
        """Create an account on both under `name`, and keep its tokens."""
        await self.post(
            f"sign up {name}",
            "com.atproto.server.createAccount",
            {
                "handle": f"{name}.test",
                "email": f"{name}@example.com",
                "password": f"{name} password",
                **more,
            },
            save={
                f"{name}.did": "did",
                f"{name}.access": "accessJwt",
                f"{name}.refresh": "refreshJwt",
            },
        )

    async def set_code(self, name: str, address: str, label: str) -> None:
        """Keep the code that was mailed last to an address, under a name."""
        found = await asyncio.gather(*(_wait_for_code(side, address) for side in self.sides))
        if found[0] is None or found[1] is None:
            self.differences[f"code: {label}"] = found
        for side, code in zip(self.sides, found, strict=True):
            side.names[name] = code or "AAAAA-AAAAA"

    def _sent(
        self, side: Side, auth: str | None, headers: Mapping[str, str] | None
    ) -> dict[str, str]:
        """The headers of a request to one server."""
        sent: dict[str, str] = {"Accept": "application/json", **side.fill(dict(headers or {}))}
        if auth == "admin":
            sent["Authorization"] = aiohttp.encode_basic_auth("admin", ADMIN_PASSWORD)
        elif auth is not None and " " in auth:
            sent["Authorization"] = side.fill(auth)
        elif auth is not None:
            sent["Authorization"] = f"Bearer {side.names[f'{auth}.access']}"
        return sent

    async def _send(
        self,
        side: Side,
        nsid: str,
        verb: str,
        *,
        params: Fields | None,
        body: Any,
        headers: dict[str, str],
    ) -> Answer:
        filled = side.fill(body)
        data: bytes | None = None
        if isinstance(filled, bytes):
            data = filled
            headers.setdefault("Content-Type", "application/octet-stream")
        elif filled is not None:
            data = json.dumps(filled).encode()
            headers.setdefault("Content-Type", "application/json")
        async with self.session.request(
            verb,
            f"{side.url}/xrpc/{nsid}",
            params=[
                (key, text)
                for key, value in side.fill(dict(params or {})).items()
                for text in _texts(value)
            ],
            data=None if data is None else io.BytesIO(data),
            headers=headers,
            skip_auto_headers=("Content-Type",),
        ) as answer:
            content = await answer.read()
            is_json = answer.content_type == "application/json"
            return Answer(
                answer.status,
                {key: answer.headers[key] for key in answer.headers},
                json.loads(content) if is_json and content else content,
                is_json,
            )


async def _wait_for_code(side: Side, address: str) -> str | None:
    """The code that was or will soon be mailed."""
    for _ in range(MAIL_TRIES):
        code = side.take_code(address)
        if code is not None:
            return code
        await asyncio.sleep(0.05)
    return None


def _texts(value: Any) -> list[str]:
    """A parameter's values as they stand in a URL."""
    values = value if isinstance(value, list) else [value]
    return [json.dumps(one) if isinstance(one, bool) else str(one) for one in values]
