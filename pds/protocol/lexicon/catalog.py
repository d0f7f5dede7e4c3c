"""All schema documents that we know, and the questions the program asks of them.

* May this record be written? `Catalog.validate_record`.
* What does this method take and answer? `Catalog.method`.
* What does this permission set grant? `Catalog.permission_set`.

A document that breaks a rule, or that refers to something missing, is treated as unknown as a
whole (LEX-11). Records of unknown collections are neither valid nor invalid (LEX-63).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pds.protocol.data import Data
from pds.protocol.lexicon.definitions import (
    Document,
    MethodDef,
    NamedDef,
    PermissionSetDef,
    RecordDef,
)
from pds.protocol.lexicon.formats import FORMATS
from pds.protocol.lexicon.links import check_links
from pds.protocol.lexicon.methods import Method
from pds.protocol.lexicon.nodes import UnknownType
from pds.protocol.lexicon.scalars import Check
from pds.protocol.lexicon.schema import SCHEMA_COLLECTION, SchemaError, parse_document
from pds.protocol.lexicon.validate import Compiler, Form, LexiconError, run_check

__all__ = ["Catalog", "LexiconError", "Method", "SchemaError"]


@dataclass(frozen=True, slots=True)
class _RecordType:
    has_key: Callable[[str], bool]
    key_message: str
    check: Check


class Catalog:
    """A set of checked documents, by NSID.

    `refused` says which of the given documents are not usable, and why; it names a document by
    its `id`, or by its position where it has none.
    """

    def __init__(self, documents: Iterable[Document], *, base: "Catalog | None" = None) -> None:
        """Take `documents`, which may refer to those of `base` and never replace one of them."""
        self.documents: Mapping[str, Document] = MappingProxyType(
            {document.id: document for document in documents}
        )
        self.refused: Mapping[str, str] = MappingProxyType({})
        self._definitions: dict[str, NamedDef] = {}
        for document in self.documents.values():
            self._definitions.update(document.full_names())
        self._base = base
        self._data_compiler = Compiler(self.definition, Form.DATA)
        self._json_compiler = Compiler(self.definition, Form.JSON)
        self._record_types: dict[str, _RecordType | None] = {}
        self._methods: dict[str, Method | None] = {}

    @classmethod
    def from_documents(cls, documents: Iterable[object]) -> Self:
        """Check documents given as parsed JSON; of two with one `id` the first counts."""
        accepted: dict[str, Document] = {}
        refused: dict[str, str] = {}
        for index, value in enumerate(documents):
            nsid = value.get("id") if isinstance(value, dict) else None
            name = nsid if isinstance(nsid, str) else f"document {index}"
            try:
                document = parse_document(value)
            except SchemaError as error:
                refused[name] = str(error)
                continue
            if document.id in accepted:
                refused[name] = "given twice"
            else:
                accepted[document.id] = document
        catalog = cls(accepted.values())
        catalog.refused = MappingProxyType(refused)
        return catalog

    def definition(self, name: str) -> NamedDef | None:
        """Look up a definition by its full name: `nsid`, or `nsid#name`."""
        if self._base is not None and (found := self._base.definition(name)) is not None:
            return found
        return self._definitions.get(name)

    def check_all_links(self) -> None:
        """Follow every reference of every document.

        Raises: SchemaError for the first one that leads nowhere or to the wrong type.
        """
        for name in self._definitions:
            check_links(name, self.definition)

    def validate_record(
        self, collection: str, rkey: str | None, value: Data
    ) -> Literal["valid", "unknown"]:
        """Judge a record that somebody wants to write to `collection`.

        `rkey` is None where the record key has not been chosen yet. "unknown" means that no
        usable schema of the collection is known; nothing was checked then.
        A schema document, which is a record too, must itself be a legal one (LEX-67).
        Raises: LexiconError.
        Spec: lexicon#record (LEX-25, LEX-32, LEX-35, LEX-63)
        """
        record_type = self._record_type(collection)
        if record_type is None:
            return "unknown"
        if rkey is not None and not record_type.has_key(rkey):
            raise LexiconError("rkey", record_type.key_message)
        run_check(record_type.check, value, "record")
        if collection == SCHEMA_COLLECTION:
            _check_published_document(rkey, value)
        return "valid"

    def method(self, nsid: str) -> Method | None:
        """Return the query, procedure or subscription called `nsid`, if it is known and usable."""
        try:
            return self._methods[nsid]
        except KeyError:
            pass
        definition = self._definitions.get(nsid)
        if not isinstance(definition, MethodDef):
            return None
        method = None
        if self._has_links(nsid):
            method = Method(
                self.documents[nsid].id,
                definition,
                json_compiler=self._json_compiler,
                data_compiler=self._data_compiler,
            )
        self._methods[nsid] = method
        return method

    def permission_set(self, nsid: str) -> PermissionSetDef | None:
        """Return the permission set called `nsid`, if it is known."""
        definition = self._definitions.get(nsid)
        return definition if isinstance(definition, PermissionSetDef) else None

    def _record_type(self, collection: str) -> _RecordType | None:
        try:
            return self._record_types[collection]
        except KeyError:
            pass
        definition = self._definitions.get(collection)
        if definition is None:
            return None
        if not isinstance(definition, RecordDef):
            raise LexiconError("collection", f"{collection} is not a type of record")
        record_type = None
        if self._has_links(collection):
            has_key, key_message = _key_test(definition.key)
            check = self._data_compiler.named(collection)
            record_type = _RecordType(has_key, key_message, check)
        self._record_types[collection] = record_type
        return record_type

    def _has_links(self, name: str) -> bool:
        try:
            check_links(name, self.definition)
        except SchemaError:
            return False
        return True


def _check_published_document(rkey: str | None, value: Data) -> None:
    """Refuse to publish a schema document that nobody could use, or under another name.

    Types that we do not know are let through: they may be newer than this program.
    """
    nsid = value.get("id") if isinstance(value, dict) else None
    if rkey is not None and rkey != nsid:
        raise LexiconError("rkey", "must be the id of the document")
    try:
        parse_document(value)
    except UnknownType:
        return
    except SchemaError as error:
        path, _, message = str(error).partition(": ")
        raise LexiconError(path.replace("document", "record", 1), message) from error


def _key_test(key: str) -> tuple[Callable[[str], bool], str]:
    """Return the test of a record key, and what to say of one that fails (LEX-10, LEX-25)."""
    match key:
        case "any":
            return FORMATS["record-key"], "must be a record key"
        case "tid" | "nsid":
            return FORMATS[key], f"must be {'a TID' if key == 'tid' else 'an NSID'}"
        case _:
            literal = key.removeprefix("literal:")
            return (lambda rkey: rkey == literal), f"must be {literal!r}"
