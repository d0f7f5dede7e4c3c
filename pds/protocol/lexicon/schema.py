"""Parse and check schema documents (LEX-1 to LEX-11).

A document is accepted or refused as a whole (LEX-11): `parse_document` returns only what
satisfies every rule that one document can show by itself. Whether references lead anywhere, and
to something they may lead to (LEX-5), depends on other documents: `links` finds out when it
follows them.

Unknown extra fields are ignored. An unknown `type`, a primary type of the future included, makes
the document that has it unusable, and no other.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from pds.protocol.lexicon.definitions import (
    Document,
    MethodDef,
    NamedDef,
    ObjectDef,
    Payload,
    PermissionDef,
    PermissionSetDef,
    RecordDef,
    RefDef,
    TokenDef,
    UnionDef,
    UnknownDef,
)
from pds.protocol.lexicon.fields import (
    is_mime_pattern,
    parse_field,
    parse_object,
    parse_params,
    parse_union,
)
from pds.protocol.lexicon.nodes import Node, SchemaError
from pds.protocol.syntax import InvalidSyntax, Nsid, parse_nsid, parse_record_key

__all__ = ["LEXICON_VERSION", "SCHEMA_COLLECTION", "SchemaError", "parse_document"]

LEXICON_VERSION: Final = 1
"""The version of the language, in the field `lexicon` of every document."""
SCHEMA_COLLECTION: Final = "com.atproto.lexicon.schema"
"""The collection in which documents are published, and the `$type` of published ones."""

_PRIMARY: Final = frozenset({"record", "query", "procedure", "subscription", "permission-set"})
_UNNAMED: Final = UnknownDef | RefDef | UnionDef
"""Types that may stand inside a definition but not be one (LEX-3)."""


def parse_document(value: object) -> Document:
    """Check a schema document, given as parsed JSON, and return its definitions.

    Raises: SchemaError, whose message names the place and the rule.
    Spec: lexicon#lexicon-files (LEX-1, LEX-2, LEX-3, LEX-11)
    """
    node = Node(value, "document")
    version = node.integer("lexicon")
    if version != LEXICON_VERSION:
        raise node.error(f"lexicon must be {LEXICON_VERSION}")
    nsid = _parse_id(node)
    if node.text("$type") not in (None, SCHEMA_COLLECTION):
        raise node.error(f"$type must be {SCHEMA_COLLECTION}")
    node.text("description")
    defs_node = node.required_node("defs")
    if not defs_node.fields:
        raise defs_node.error("needs at least one definition")
    defs: dict[str, NamedDef] = {}
    for name, child in defs_node.children():
        if "#" in name or "." in name:
            raise child.error("a definition's name has no # and no .")
        defs[name] = _parse_definition(child, name, nsid)
    return Document(id=nsid, defs=MappingProxyType(defs), revision=node.integer("revision"))


def _parse_id(node: Node) -> Nsid:
    try:
        return parse_nsid(node.required_text("id"))
    except InvalidSyntax as error:
        raise node.error("id must be an NSID") from error


def _parse_definition(node: Node, name: str, document: str) -> NamedDef:
    kind = node.text("type")
    if kind in _PRIMARY and name != "main":
        raise node.error(f"a {kind} must be called main")
    match kind:
        case "record":
            return _parse_record(node, document)
        case "query" | "procedure":
            return _parse_method(node, kind, document)
        case "subscription":
            return _parse_subscription(node, document)
        case "permission-set":
            return _parse_permission_set(node)
        case "token":
            return TokenDef()
        case _:
            definition = parse_field(node, document)
            if isinstance(definition, _UNNAMED):
                raise node.error(f"{kind} cannot be a definition of its own")
            return definition


def _parse_record(node: Node, document: str) -> RecordDef:
    key = node.required_text("key")
    if key not in ("any", "tid", "nsid"):
        prefix, _, literal = key.partition(":")
        try:
            parse_record_key(literal)
        except InvalidSyntax as error:
            raise node.error(f"{key!r} is not a kind of record key") from error
        if prefix != "literal":
            raise node.error(f"{key!r} is not a kind of record key")
    return RecordDef(key=key, record=parse_object(node.required_node("record"), document))


def _parse_method(node: Node, kind: Literal["query", "procedure"], document: str) -> MethodDef:
    parameters = node.node("parameters")
    body = node.node("input") if kind == "procedure" else None
    answer = node.node("output")
    return MethodDef(
        kind=kind,
        parameters=parse_params(parameters, document) if parameters else None,
        input=_parse_payload(body, document) if body else None,
        output=_parse_payload(answer, document) if answer else None,
        errors=_parse_errors(node),
    )


def _parse_subscription(node: Node, document: str) -> MethodDef:
    parameters = node.node("parameters")
    message = node.node("message")
    return MethodDef(
        kind="subscription",
        parameters=parse_params(parameters, document) if parameters else None,
        message=parse_union(message.required_node("schema"), document) if message else None,
        errors=_parse_errors(node),
    )


def _parse_payload(node: Node, document: str) -> Payload:
    """Parse a request or answer body (LEX-9)."""
    encoding = node.text("encoding")
    if encoding is None or not is_mime_pattern(encoding):
        raise node.error("encoding must be one MIME type without parameters")
    schema_node = node.node("schema")
    if schema_node is None:
        return Payload(encoding)
    schema = parse_field(schema_node, document)
    if not isinstance(schema, ObjectDef | RefDef | UnionDef):
        raise schema_node.error("a payload is an object, a ref or a union")
    return Payload(encoding, schema)


def _parse_errors(node: Node) -> tuple[str, ...]:
    names = []
    for index, item in enumerate(node.items("errors") or ()):
        error = Node(item, f"{node.path}/errors/{index}", node.depth + 1)
        name = error.text("name")
        if not name or any(character.isspace() for character in name):
            raise error.error("name must be a word")
        names.append(name)
    return tuple(names)


def _parse_permission_set(node: Node) -> PermissionSetDef:
    """Parse a permission set; entries that make no sense are dropped when it is used."""
    permissions = []
    items = node.items("permissions")
    if items is None:
        raise node.error("permissions is required")
    for index, item in enumerate(items):
        entry = Node(item, f"{node.path}/permissions/{index}", node.depth + 1)
        resource = entry.text("resource")
        if entry.text("type") != "permission" or not resource:
            raise entry.error("must be a permission with a resource")
        fields = {k: v for k, v in entry.fields.items() if k not in ("type", "resource")}
        permissions.append(PermissionDef(resource, MappingProxyType(fields)))
    return PermissionSetDef(
        permissions=tuple(permissions),
        title=node.text("title"),
        title_by_language=_parse_translations(node, "title:lang"),
        detail=node.text("detail"),
        detail_by_language=_parse_translations(node, "detail:lang"),
    )


def _parse_translations(node: Node, name: str) -> Mapping[str, str] | None:
    translations = node.node(name)
    if translations is None:
        return None
    return MappingProxyType(
        {language: translations.required_text(language) for language in translations.fields}
    )
