"""Parse the definitions that describe data: scalars, containers, references and unions."""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pds.protocol.lexicon.definitions import (
    ArrayDef,
    BlobDef,
    BooleanDef,
    BytesDef,
    CidLinkDef,
    FieldDef,
    IntegerDef,
    ObjectDef,
    ParamDef,
    ParamsDef,
    RefDef,
    StringDef,
    UnionDef,
    UnknownDef,
)
from pds.protocol.lexicon.formats import FORMATS
from pds.protocol.lexicon.nodes import Node, UnknownType
from pds.protocol.lexicon.scalars import Check, Violation, integer_check, string_check
from pds.protocol.syntax import InvalidSyntax, parse_nsid

_MIME_NAME: Final = r"[A-Za-z0-9!#$&^_.+-]+"
_MIME_PATTERN: Final = re.compile(rf"\*/\*|{_MIME_NAME}/(?:\*|{_MIME_NAME})")


def parse_field(node: Node, document: str) -> FieldDef:
    """Parse a property, an element or a named data definition of the document `document`."""
    kind = node.required_text("type")
    parse = _PARSERS.get(kind)
    if parse is None:
        raise UnknownType(f"{node.path}: {kind!r} is not a type of data")
    return parse(node, document)


def parse_object(node: Node, document: str) -> ObjectDef:
    """Parse an `object`, which must say so (LEX-6)."""
    if node.text("type") != "object":
        raise node.error("type must be 'object'")
    properties_node = node.node("properties")
    properties = {
        name: parse_field(child, document)
        for name, child in (properties_node.children() if properties_node else ())
    }
    return ObjectDef(
        properties=MappingProxyType(properties),
        required=_property_names(node, "required", properties),
        nullable=frozenset(_property_names(node, "nullable", properties)),
    )


def parse_params(node: Node, document: str) -> ParamsDef:
    """Parse `params` (LEX-8)."""
    if node.text("type") != "params":
        raise node.error("type must be 'params'")
    if "nullable" in node.fields:
        raise node.error("parameters cannot be nullable")
    properties_node = node.node("properties")
    properties: dict[str, ParamDef] = {}
    for name, child in properties_node.children() if properties_node else ():
        definition = parse_field(child, document)
        element = definition.items if isinstance(definition, ArrayDef) else definition
        if not isinstance(definition, ParamDef) or not isinstance(
            element, BooleanDef | IntegerDef | StringDef
        ):
            raise child.error("a parameter is a boolean, an integer, a string or an array of one")
        properties[name] = definition
    return ParamsDef(
        properties=MappingProxyType(properties),
        required=_property_names(node, "required", properties),
    )


def parse_union(node: Node, document: str) -> UnionDef:
    """Parse a `union`; closed and empty is refused, open and empty is any typed map (LEX-5)."""
    if node.text("type") != "union":
        raise node.error("type must be 'union'")
    refs = node.texts("refs")
    if refs is None:
        raise node.error("refs is required")
    closed = node.boolean("closed") or False
    if closed and not refs:
        raise node.error("a closed union needs refs")
    targets = tuple(full_name(node, ref, document) for ref in refs)
    return UnionDef(targets=targets, closed=closed)


def parse_ref(node: Node, document: str) -> RefDef:
    """Parse a `ref`."""
    return RefDef(full_name(node, node.required_text("ref"), document))


def full_name(node: Node, ref: str, document: str) -> str:
    """Write out a reference of `document`: `nsid` or `nsid#name` (LEX-4)."""
    nsid, mark, name = ref.partition("#")
    if mark and (not name or "#" in name):
        raise node.error(f"{ref!r} is not a reference")
    if nsid:
        try:
            parse_nsid(nsid)
        except InvalidSyntax as error:
            raise node.error(f"{ref!r} is not a reference") from error
    elif not mark:
        raise node.error("a reference must not be empty")
    nsid = nsid or document
    return nsid if not mark or name == "main" else f"{nsid}#{name}"


def is_mime_pattern(text: str) -> bool:
    """Whether a text is one MIME type without parameters, `type/*` or `*/*` (LEX-9)."""
    return _MIME_PATTERN.fullmatch(text) is not None


def _property_names(node: Node, field: str, properties: Mapping[str, object]) -> tuple[str, ...]:
    names = node.texts(field) or ()
    for name in names:
        if name not in properties:
            raise node.error(f"{field} names {name!r}, which is no property")
    return tuple(dict.fromkeys(names))


def _parse_boolean(node: Node, _document: str) -> BooleanDef:
    const, default = node.boolean("const"), node.boolean("default")
    _refuse_both(node, const, default)
    return BooleanDef(const=const, default=default)


def _parse_integer(node: Node, _document: str) -> IntegerDef:
    minimum, maximum = node.integer("minimum"), node.integer("maximum")
    _check_order(node, "minimum", minimum, "maximum", maximum)
    enum = node.integers("enum")
    const, default = node.integer("const"), node.integer("default")
    _refuse_both(node, const, default)
    range_check = integer_check(IntegerDef(minimum=minimum, maximum=maximum))
    for value in (*(enum or ()), const):
        _check_example(node, value, range_check)
    _check_example(node, default, integer_check(IntegerDef(minimum, maximum, enum)))
    return IntegerDef(minimum, maximum, enum, const, default)


def _parse_string(node: Node, _document: str) -> StringDef:
    format_name = node.text("format")
    if format_name is not None and format_name not in FORMATS:
        raise node.error(f"{format_name!r} is not a format")
    min_length, max_length = node.size("minLength"), node.size("maxLength")
    _check_order(node, "minLength", min_length, "maxLength", max_length)
    min_graphemes, max_graphemes = node.size("minGraphemes"), node.size("maxGraphemes")
    _check_order(node, "minGraphemes", min_graphemes, "maxGraphemes", max_graphemes)
    enum = node.texts("enum")
    const, default = node.text("const"), node.text("default")
    _refuse_both(node, const, default)
    limits = (format_name, min_length, max_length, min_graphemes, max_graphemes)
    limits_check = string_check(StringDef(*limits))
    for value in (*(enum or ()), const):
        _check_example(node, value, limits_check)
    _check_example(node, default, string_check(StringDef(*limits, enum)))
    known_values = node.texts("knownValues") or ()
    return StringDef(*limits, enum, known_values, const, default)


def _parse_bytes(node: Node, _document: str) -> BytesDef:
    minimum, maximum = node.size("minLength"), node.size("maxLength")
    _check_order(node, "minLength", minimum, "maxLength", maximum)
    return BytesDef(minimum, maximum)


def _parse_cid_link(_node: Node, _document: str) -> CidLinkDef:
    return CidLinkDef()


def _parse_blob(node: Node, _document: str) -> BlobDef:
    accept = node.texts("accept")
    for pattern in accept or ():
        if not is_mime_pattern(pattern):
            raise node.error(f"accept: {pattern!r} is not a MIME type or pattern")
    lowered = None if accept is None else tuple(pattern.lower() for pattern in accept)
    return BlobDef(accept=lowered, max_size=node.size("maxSize"))


def _parse_unknown(_node: Node, _document: str) -> UnknownDef:
    return UnknownDef()


def _parse_array(node: Node, document: str) -> ArrayDef:
    minimum, maximum = node.size("minLength"), node.size("maxLength")
    _check_order(node, "minLength", minimum, "maxLength", maximum)
    return ArrayDef(parse_field(node.required_node("items"), document), minimum, maximum)


def _check_order(node: Node, low: str, minimum: int | None, high: str, maximum: int | None) -> None:
    if minimum is not None and maximum is not None and minimum > maximum:
        raise node.error(f"{low} is above {high}")


def _refuse_both(node: Node, const: object, default: object) -> None:
    if const is not None and default is not None:
        raise node.error("const and default exclude each other")


def _check_example(node: Node, value: object, check: Check) -> None:
    """Refuse a const, default or enum entry that its own constraints refuse (LEX-7)."""
    if value is None:
        return
    try:
        check(value, 0)
    except Violation as violation:
        raise node.error(f"the value {value!r} {violation.message}") from violation


_PARSERS: Final[Mapping[str, Callable[[Node, str], FieldDef]]] = MappingProxyType(
    {
        "boolean": _parse_boolean,
        "integer": _parse_integer,
        "string": _parse_string,
        "bytes": _parse_bytes,
        "cid-link": _parse_cid_link,
        "blob": _parse_blob,
        "unknown": _parse_unknown,
        "array": _parse_array,
        "object": parse_object,
        "ref": parse_ref,
        "union": parse_union,
    }
)
