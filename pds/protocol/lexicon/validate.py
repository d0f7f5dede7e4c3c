"""Turn definitions into closures that check values.

There are two forms of value, and one compiler for both (`Form`): records are checked as data
(`Cid` and `bytes` objects), method inputs and outputs as the JSON form (`{"$link"}`,
`{"$bytes"}`).

A definition is compiled when it is first used. References may form cycles, which are legal for
objects (LEX-12): a reference to a definition whose compilation is under way, or that lies deep
down, is followed at the time of the check. Checks carry the nesting depth, so neither a schema
nor a value can recurse without bound.

`links` settles beforehand whether everything that a definition can reach exists and may be
referred to (LEX-5), so that a schema is usable entirely or not at all (LEX-11).

Checks never change the value: no default is filled in (LEX-22), nothing is stripped (LEX-21).
"""

import re
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Final, assert_never

from pds.errors import ProtocolError
from pds.protocol.cbor import MAX_DEPTH
from pds.protocol.cid import Cid, InvalidCid, parse_cid
from pds.protocol.lexicon.definitions import (
    ArrayDef,
    BlobDef,
    BooleanDef,
    BytesDef,
    CidLinkDef,
    FieldDef,
    IntegerDef,
    MethodDef,
    ObjectDef,
    PermissionSetDef,
    RecordDef,
    RefDef,
    StringDef,
    TokenDef,
    UnionDef,
    UnknownDef,
)
from pds.protocol.lexicon.links import Find, check_links
from pds.protocol.lexicon.nodes import SchemaError
from pds.protocol.lexicon.scalars import (
    Check,
    Violation,
    boolean_check,
    integer_check,
    string_check,
)

MAX_JSON_DEPTH: Final = 150
"""Deepest nesting checked in the JSON form: post threads are much deeper than records."""

_MAX_INLINE_DEPTH: Final = 8
"""References nested deeper than this are bound when first followed, to bound recursion."""
_SHOWN_CHARACTERS: Final = 100
_BLOB_KEYS: Final = 4
_BASE64: Final = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}(?:==)?|[A-Za-z0-9+/]{3}=?)?")


class Form(Enum):
    """How links, bytes and blobs are written in the values that are checked."""

    DATA = "data"
    JSON = "json"


class LexiconError(ProtocolError):
    """A value breaks its schema: `path` says where, `message` which constraint (LEX-35)."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def run_check(check: Check, value: object, root: str) -> None:
    """Check a whole value (LEX-32).

    Raises: LexiconError, whose path starts with `root`.
    """
    try:
        check(value, 0)
    except Violation as violation:
        raise LexiconError(violation.path(root), violation.message) from None


class Compiler:
    """Builds and keeps the checks of named definitions for one form of value.

    Safe to use from several threads: two may build the same check, and either result serves.
    """

    def __init__(self, find: Find, form: Form) -> None:
        self._find = find
        self._form = form
        self._max_depth = MAX_DEPTH if form is Form.DATA else MAX_JSON_DEPTH
        self._checks: dict[str, Check] = {}
        self._unlisted_checks: dict[str, Check | None] = {}

    def named(self, name: str) -> Check:
        """Return the check of the definition called `name`, whose links have been checked."""
        return self._named(name, ())

    def anonymous(self, definition: FieldDef) -> Check:
        """Return the check of a definition without a name, such as the schema of a payload."""
        return self._field(definition, ())

    def _named(self, name: str, building: tuple[str, ...]) -> Check:
        check = self._checks.get(name)
        if check is not None:
            return check
        definition = self._find(name)
        building = (*building, name)
        match definition:
            case None | TokenDef() | MethodDef() | PermissionSetDef():
                raise SchemaError(f"{name}: is not data")
            case RecordDef():
                check = _record_check(name, self._object(definition.record, None, building))
            case ObjectDef():
                check = self._object(definition, name, building)
            case _:
                check = self._field(definition, building)
        self._checks[name] = check
        return check

    def _field(self, definition: FieldDef, building: tuple[str, ...]) -> Check:
        match definition:
            case BooleanDef():
                return boolean_check(definition)
            case IntegerDef():
                return integer_check(definition)
            case StringDef():
                return string_check(definition)
            case ObjectDef():
                return self._object(definition, None, building)
            case ArrayDef():
                return self._array(definition, building)
            case RefDef():
                return self._reference(definition.target, building)
            case UnionDef():
                return self._union(definition, building)
            case BytesDef():
                return _bytes_check(definition, self._form)
            case CidLinkDef():
                return _check_link if self._form is Form.DATA else _check_json_link
            case BlobDef():
                return _blob_check(definition, self._form)
            case UnknownDef():
                return _check_unknown if self._form is Form.DATA else _check_json_unknown
            case _:
                assert_never(definition)

    def _reference(self, name: str, building: tuple[str, ...]) -> Check:
        known = self._checks.get(name)
        if known is not None:
            return known
        if name not in building and len(building) < _MAX_INLINE_DEPTH:
            return self._named(name, building)

        def check_later(value: object, depth: int) -> None:
            self._named(name, ())(value, depth)

        return check_later

    def _object(self, definition: ObjectDef, name: str | None, building: tuple[str, ...]) -> Check:
        """Build the check of an object; missing, null and falsy are three things (LEX-20).

        A named one refuses a `$type` that contradicts its name; it may be absent (LEX-24).
        """
        checks = {
            key: _or_null(check) if key in definition.nullable else check
            for key, field in definition.properties.items()
            for check in (self._field(field, building),)
        }
        find_check = checks.get
        required = definition.required
        max_depth = self._max_depth
        is_json = self._form is Form.JSON

        def check_object(value: object, depth: int) -> None:
            if type(value) is not dict:
                raise Violation("must be an object")
            if is_json and ("$link" in value or "$bytes" in value):
                raise Violation("must be an object")
            if depth >= max_depth:
                raise Violation("is nested too deeply")
            for key in required:
                if key not in value:
                    raise _missing(key)
            if name is not None and value.get("$type", name) != name:
                raise Violation(f"$type must be {name} or absent")
            key = ""
            try:
                for key, item in value.items():
                    check = find_check(key)
                    if check is not None:
                        check(item, depth + 1)
            except Violation as violation:
                violation.steps.append(key)
                raise

        return check_object

    def _array(self, definition: ArrayDef, building: tuple[str, ...]) -> Check:
        check = self._field(definition.items, building)
        minimum, maximum = definition.min_length or 0, definition.max_length
        max_depth = self._max_depth

        def check_array(value: object, depth: int) -> None:
            if type(value) is not list:
                raise Violation("must be an array")
            length = len(value)
            if maximum is not None and length > maximum:
                raise Violation(f"is too long (maximum {maximum} items)")
            if length < minimum:
                raise Violation(f"is too short (minimum {minimum} items)")
            if depth >= max_depth:
                raise Violation("is nested too deeply")
            index = 0
            try:
                for index, item in enumerate(value):  # noqa: B007  # named when a check fails
                    check(item, depth + 1)
            except Violation as violation:
                violation.steps.append(index)
                raise

        return check_array

    def _union(self, definition: UnionDef, building: tuple[str, ...]) -> Check:
        """Build the check of a union (LEX-23).

        A type that an open union does not list is accepted; when we know its schema, it must
        obey it.
        """
        branches = {name: self._reference(name, building) for name in definition.targets}
        closed = definition.closed

        def check_union(value: object, depth: int) -> None:
            if type(value) is not dict:
                raise Violation("must be an object")
            name = value.get("$type")
            if type(name) is not str or not name:
                raise Violation("must have a $type")
            check = branches.get(name)
            if check is None:
                if closed:
                    raise Violation(f"has the $type {_shorten(name)}, which is not allowed here")
                if name.endswith("#main"):
                    raise Violation("has a $type that ends in #main")
                check = self._unlisted(name)
            if check is not None:
                check(value, depth)

        return check_union

    def _unlisted(self, name: str) -> Check | None:
        try:
            return self._unlisted_checks[name]
        except KeyError:
            pass
        if not isinstance(self._find(name), ObjectDef | RecordDef):
            return None
        check = None
        # A known schema with a link that leads nowhere is as good as unknown.
        with suppress(SchemaError):
            check_links(name, self._find)
            check = self._named(name, ())
        self._unlisted_checks[name] = check
        return check


def _missing(key: str) -> Violation:
    violation = Violation("is required")
    violation.steps.append(key)
    return violation


def _shorten(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return repr(text)
    return repr(text[:_SHOWN_CHARACTERS]) + "..."


def _or_null(check: Check) -> Check:
    def check_nullable(value: object, depth: int) -> None:
        if value is not None:
            check(value, depth)

    return check_nullable


def _record_check(nsid: str, check: Check) -> Check:
    """Build the check of a whole record, which always says what it is (LEX-25)."""

    def check_record(value: object, depth: int) -> None:
        if type(value) is dict and value.get("$type") != nsid:
            violation = Violation(f"must be {nsid}")
            violation.steps.append("$type")
            raise violation
        check(value, depth)

    return check_record


# --- Kinds that the two forms write differently -----------------------------------------------


def _bytes_check(definition: BytesDef, form: Form) -> Check:
    minimum, maximum = definition.min_length or 0, definition.max_length

    def check_length(length: int) -> None:
        if length < minimum:
            raise Violation(f"is too short (minimum {minimum} bytes)")
        if maximum is not None and length > maximum:
            raise Violation(f"is too long (maximum {maximum} bytes)")

    def check_bytes(value: object, _depth: int) -> None:
        if type(value) is not bytes:
            raise Violation("must be bytes")
        check_length(len(value))

    def check_json_bytes(value: object, _depth: int) -> None:
        text = value.get("$bytes") if type(value) is dict and len(value) == 1 else None
        if type(text) is not str:
            raise Violation("must be bytes")
        if _BASE64.fullmatch(text) is None:
            raise Violation("must be bytes in base64")
        check_length(len(text.rstrip("=")) * 3 // 4)

    return check_bytes if form is Form.DATA else check_json_bytes


def _check_link(value: object, _depth: int) -> None:
    if type(value) is not Cid:
        raise Violation("must be a link")


def _check_json_link(value: object, _depth: int) -> None:
    text = value.get("$link") if type(value) is dict and len(value) == 1 else None
    if type(text) is not str:
        raise Violation("must be a link")
    try:
        parse_cid(text)
    except InvalidCid as error:
        raise Violation("must be a link to a CID") from error


def _check_unknown(value: object, _depth: int) -> None:
    if type(value) is not dict or value.get("$type") == "blob":
        raise Violation("must be an object")


def _check_json_unknown(value: object, _depth: int) -> None:
    if type(value) is not dict or value.get("$type") == "blob":
        raise Violation("must be an object")
    if "$link" in value or "$bytes" in value:
        raise Violation("must be an object")


def _blob_check(definition: BlobDef, form: Form) -> Check:
    """Build the check of a blob reference: shape, MIME type and size (LEX-29, LEX-30).

    Any CID may stand in it; that new records need a raw one is the data model's rule (DM-40).
    """
    check_ref = _check_link if form is Form.DATA else _check_json_link
    accepts = _mime_test(definition.accept)
    accepted = ", ".join(definition.accept or ())
    max_size = definition.max_size

    def check_blob(value: object, depth: int) -> None:
        if type(value) is not dict or value.get("$type") != "blob" or len(value) != _BLOB_KEYS:
            raise Violation("must be a blob")
        mime_type, size = value.get("mimeType"), value.get("size")
        if type(mime_type) is not str or "/" not in mime_type:
            raise Violation("must be a blob with a mimeType")
        if type(size) is not int or size < 0:
            raise Violation("must be a blob with a size")
        try:
            check_ref(value.get("ref"), depth)
        except Violation as violation:
            violation.steps.append("ref")
            raise
        if not accepts(mime_type.lower()):
            raise Violation(f"has the type {_shorten(mime_type)} (accepted: {accepted})")
        if max_size is not None and size > max_size:
            raise Violation(f"is too big (maximum {max_size} bytes)")

    return check_blob


def _mime_test(accept: tuple[str, ...] | None) -> Callable[[str], bool]:
    """Build the test whether a lower-case MIME type is accepted (LEX-29)."""
    if accept is None or "*/*" in accept:
        return lambda _mime_type: True
    exact = frozenset(accept)
    groups = frozenset(pattern[:-2] for pattern in accept if pattern.endswith("/*"))
    return lambda mime_type: mime_type in exact or mime_type.partition("/")[0] in groups
