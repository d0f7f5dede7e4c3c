"""Queries, procedures and subscriptions: how a request and its answer must look.

`Method` is what the server asks: which verb and content types, which error names, and whether
parameters, body and answer obey the schema. Checks are compiled at first use.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pds.protocol.data import Data, Json
from pds.protocol.lexicon.definitions import (
    ArrayDef,
    BooleanDef,
    IntegerDef,
    MethodDef,
    ParamDef,
    ParamsDef,
    Payload,
)
from pds.protocol.lexicon.scalars import Check
from pds.protocol.lexicon.validate import Compiler, LexiconError, run_check
from pds.protocol.syntax import Nsid

ParamValue = bool | int | str | list[bool] | list[int] | list[str]
"""A parsed parameter."""

MethodKind = Literal["query", "procedure", "subscription"]

_INTEGER: Final = re.compile(r"-?[0-9]+")
_MAX_INTEGER_DIGITS: Final = 20
"""More digits cannot be a legal integer, and turning thousands of them into one is slow."""


@dataclass(frozen=True, slots=True)
class _Param:
    read: Callable[[str], bool | int | str | None]
    expected: str
    check: Check
    is_array: bool
    is_required: bool
    default: bool | int | str | None


class Method:
    """One XRPC method.

    `errors` are the names that its schema declares. `input_encoding` and `output_encoding` are
    MIME types or patterns, None where there is no body.
    """

    def __init__(
        self, nsid: Nsid, definition: MethodDef, *, json_compiler: Compiler, data_compiler: Compiler
    ) -> None:
        self.nsid = nsid
        self.kind: MethodKind = definition.kind
        self.errors = definition.errors
        self.input_encoding = _encoding(definition.input)
        self.output_encoding = _encoding(definition.output)
        self._definition = definition
        self._json_compiler = json_compiler
        self._data_compiler = data_compiler
        self._params: Mapping[str, _Param] | None = None
        self._input_check: Check | None = None
        self._output_check: Check | None = None

    @property
    def has_input_schema(self) -> bool:
        """Whether the request body is JSON with a schema."""
        return self._definition.input is not None and self._definition.input.schema is not None

    @property
    def has_output_schema(self) -> bool:
        """Whether the answer is JSON with a schema."""
        return self._definition.output is not None and self._definition.output.schema is not None

    def parse_params(self, pairs: Iterable[tuple[str, str]]) -> dict[str, ParamValue]:
        """Read the query string, given as decoded pairs in order.

        Parameters without a value count as absent, undeclared ones are ignored, defaults are
        filled in.
        Raises: LexiconError.
        Spec: xrpc#lexicon-http-endpoints (LEX-22, LEX-33, XRPC-3)
        """
        if self._params is None:
            self._params = _compile_params(self._definition.parameters, self._json_compiler)
        params = self._params
        given: dict[str, list[str]] = {}
        for name, text in pairs:
            if text and name in params:
                given.setdefault(name, []).append(text)
        values: dict[str, ParamValue] = {}
        for name, param in params.items():
            texts = given.get(name)
            if texts is not None:
                values[name] = _read_param(name, param, texts)
            elif param.default is not None:
                values[name] = param.default
            elif param.is_required:
                raise LexiconError(f"params/{name}", "is required")
        return values

    def check_input(self, value: Json) -> None:
        """Check a parsed request body.

        Raises: LexiconError.
        """
        check = self._input_check
        if check is None:
            check = self._input_check = self._payload_check(self._definition.input)
        run_check(check, value, "input")

    def check_output(self, value: Json) -> None:
        """Check an answer: for tests and development, never in production (LEX-34).

        Raises: LexiconError.
        """
        check = self._output_check
        if check is None:
            check = self._output_check = self._payload_check(self._definition.output)
        run_check(check, value, "output")

    def check_message(self, name: str, payload: Data) -> None:
        """Check the payload of a subscription's frame whose header says `name`, as `#commit`.

        Raises: LexiconError, also for a type that the schema does not list.
        """
        message = self._definition.message
        full_name = f"{self.nsid}{name}" if name.startswith("#") else name
        if message is None or full_name not in message.targets:
            raise LexiconError("message", f"{name} is not a message of {self.nsid}")
        run_check(self._data_compiler.named(full_name), payload, "message")

    def _payload_check(self, payload: Payload | None) -> Check:
        if payload is None or payload.schema is None:
            return _accept
        return self._json_compiler.anonymous(payload.schema)


def _encoding(payload: Payload | None) -> str | None:
    return None if payload is None else payload.encoding


def _accept(_value: object, _depth: int) -> None:
    """Accept the body of a method whose schema says nothing about it."""


# --- Parameters -------------------------------------------------------------------------------


def _compile_params(definition: ParamsDef | None, compiler: Compiler) -> dict[str, _Param]:
    if definition is None:
        return {}
    return {
        name: _compile_param(param, compiler, is_required=name in definition.required)
        for name, param in definition.properties.items()
    }


def _compile_param(definition: ParamDef, compiler: Compiler, *, is_required: bool) -> _Param:
    element = definition.items if isinstance(definition, ArrayDef) else definition
    default = None if isinstance(definition, ArrayDef) else definition.default
    read: Callable[[str], bool | int | str | None]
    match element:
        case BooleanDef():
            read, expected = _read_boolean, "must be true or false"
        case IntegerDef():
            read, expected = _read_integer, "must be an integer"
        case _:
            read, expected = str, "must be a string"
    return _Param(
        read=read,
        expected=expected,
        check=compiler.anonymous(definition),
        is_array=isinstance(definition, ArrayDef),
        is_required=is_required,
        default=default,
    )


def _read_param(name: str, param: _Param, texts: list[str]) -> ParamValue:
    path = f"params/{name}"
    if len(texts) > 1 and not param.is_array:
        raise LexiconError(path, "may be given only once")
    items = [param.read(text) for text in texts]
    if None in items:
        raise LexiconError(path, param.expected)
    value: object = items if param.is_array else items[0]
    run_check(param.check, value, path)
    return value  # type: ignore[return-value]  # the check has just settled it


def _read_boolean(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text)


def _read_integer(text: str) -> int | None:
    if len(text) > _MAX_INTEGER_DIGITS or _INTEGER.fullmatch(text) is None:
        return None
    return int(text)
