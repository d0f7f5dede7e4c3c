"""The parts of a schema document, after `schema.parse_document` has checked them.

Every definition is a frozen value. References are written out in full: `nsid` for a main
definition, `nsid#name` for any other, never `#name` and never `nsid#main` (LEX-4).
Descriptions are not kept: they do not take part in validation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pds.protocol.syntax import Nsid


@dataclass(frozen=True, slots=True)
class BooleanDef:
    """`boolean`."""

    const: bool | None = None
    default: bool | None = None


@dataclass(frozen=True, slots=True)
class IntegerDef:
    """`integer`; both bounds are inclusive."""

    minimum: int | None = None
    maximum: int | None = None
    enum: tuple[int, ...] | None = None
    const: int | None = None
    default: int | None = None


@dataclass(frozen=True, slots=True)
class StringDef:
    """`string`; lengths count UTF-8 bytes, `enum` is closed, `known_values` only suggests."""

    format: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_graphemes: int | None = None
    max_graphemes: int | None = None
    enum: tuple[str, ...] | None = None
    known_values: tuple[str, ...] = ()
    const: str | None = None
    default: str | None = None


@dataclass(frozen=True, slots=True)
class BytesDef:
    """`bytes`; lengths count raw bytes."""

    min_length: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class CidLinkDef:
    """`cid-link`."""


@dataclass(frozen=True, slots=True)
class BlobDef:
    """`blob`; `accept` holds MIME patterns in lower case."""

    accept: tuple[str, ...] | None = None
    max_size: int | None = None


@dataclass(frozen=True, slots=True)
class UnknownDef:
    """`unknown`: any map that is not bytes, a link or a blob."""


@dataclass(frozen=True, slots=True)
class TokenDef:
    """`token`: a name without data; its full name is used as a string value."""


@dataclass(frozen=True, slots=True)
class RefDef:
    """`ref`: the definition called `target`."""

    target: str


@dataclass(frozen=True, slots=True)
class UnionDef:
    """`union`: a map whose `$type` says which of `targets` it is; others too unless `closed`."""

    targets: tuple[str, ...]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ArrayDef:
    """`array`; lengths count elements."""

    items: "FieldDef"
    min_length: int | None = None
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectDef:
    """`object`; names in `required` and `nullable` all exist in `properties`."""

    properties: Mapping[str, "FieldDef"]
    required: tuple[str, ...] = ()
    nullable: frozenset[str] = frozenset()


FieldDef = (
    BooleanDef
    | IntegerDef
    | StringDef
    | BytesDef
    | CidLinkDef
    | BlobDef
    | UnknownDef
    | RefDef
    | UnionDef
    | ArrayDef
    | ObjectDef
)
"""What may stand as a property, an element or (some of them) a payload schema."""

ParamDef = BooleanDef | IntegerDef | StringDef | ArrayDef
"""What a query-string parameter may be (LEX-8)."""


@dataclass(frozen=True, slots=True)
class ParamsDef:
    """`params`: the query string of a method."""

    properties: Mapping[str, ParamDef]
    required: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Payload:
    """The body of a request or answer: a MIME type or pattern, and the schema of JSON bodies."""

    encoding: str
    schema: ObjectDef | RefDef | UnionDef | None = None


@dataclass(frozen=True, slots=True)
class RecordDef:
    """`record`; `key` is `any`, `tid`, `nsid` or `literal:<value>`."""

    key: str
    record: ObjectDef


@dataclass(frozen=True, slots=True)
class MethodDef:
    """`query`, `procedure` or `subscription`."""

    kind: Literal["query", "procedure", "subscription"]
    parameters: ParamsDef | None = None
    input: Payload | None = None
    output: Payload | None = None
    message: UnionDef | None = None
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PermissionDef:
    """One entry of a permission set, unjudged: what counts is decided where the set is used."""

    resource: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PermissionSetDef:
    """`permission-set`; texts are for the consent page."""

    permissions: tuple[PermissionDef, ...]
    title: str | None = None
    title_by_language: Mapping[str, str] | None = None
    detail: str | None = None
    detail_by_language: Mapping[str, str] | None = None


NamedDef = FieldDef | TokenDef | RecordDef | MethodDef | PermissionSetDef
"""What may stand under a name in `defs` (LEX-3 excludes some of `FieldDef`)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One schema document: definitions by name (`main` or another)."""

    id: Nsid
    defs: Mapping[str, NamedDef]
    revision: int | None = None

    def full_names(self) -> dict[str, NamedDef]:
        """Return the definitions by the names that references use."""
        return {
            self.id if name == "main" else f"{self.id}#{name}": definition
            for name, definition in self.defs.items()
        }
