"""Typed reading of the JSON maps that schema documents are made of."""

from collections.abc import Iterator, Mapping
from typing import Final

from pds.errors import ProtocolError

MAX_SCHEMA_DEPTH: Final = 32
"""Deepest nesting of definitions; a document nested deeper could describe no legal data."""


class SchemaError(ProtocolError):
    """A schema document, or a reference in it, breaks a rule; the message names the place."""


class UnknownType(SchemaError):
    """A definition of a type that we do not know, and that may be of the future."""


class Node:
    """A map of a document with the path that leads to it.

    Reading a field returns None where it is missing and raises SchemaError where it has the
    wrong type.
    """

    __slots__ = ("depth", "fields", "path")

    def __init__(self, fields: object, path: str, depth: int = 0) -> None:
        if not isinstance(fields, Mapping):
            raise SchemaError(f"{path}: must be an object")
        if depth > MAX_SCHEMA_DEPTH:
            raise SchemaError(f"{path}: nested too deeply")
        self.fields: Mapping[str, object] = fields
        self.path = path
        self.depth = depth

    def error(self, message: str) -> SchemaError:
        """Make the error that says `message` about this place."""
        return SchemaError(f"{self.path}: {message}")

    def node(self, name: str) -> "Node | None":
        """Read a map."""
        value = self.fields.get(name)
        if value is None:
            self._refuse_null(name)
            return None
        return Node(value, f"{self.path}/{name}", self.depth + 1)

    def required_node(self, name: str) -> "Node":
        """Read a map that must be there."""
        node = self.node(name)
        if node is None:
            raise self.error(f"{name} is required")
        return node

    def children(self) -> "Iterator[tuple[str, Node]]":
        """Iterate over the fields of a map whose fields are all maps with non-empty names."""
        for name, value in self.fields.items():
            if not name:
                raise self.error("names must not be empty")
            yield name, Node(value, f"{self.path}/{name}", self.depth + 1)

    def text(self, name: str) -> str | None:
        """Read a string."""
        value = self.fields.get(name)
        if value is None:
            self._refuse_null(name)
            return None
        if not isinstance(value, str):
            raise self.error(f"{name} must be a string")
        return value

    def required_text(self, name: str) -> str:
        """Read a string that must be there."""
        text = self.text(name)
        if text is None:
            raise self.error(f"{name} is required")
        return text

    def boolean(self, name: str) -> bool | None:
        """Read a boolean."""
        value = self.fields.get(name)
        if value is None:
            self._refuse_null(name)
            return None
        if not isinstance(value, bool):
            raise self.error(f"{name} must be a boolean")
        return value

    def integer(self, name: str) -> int | None:
        """Read an integer."""
        value = self.fields.get(name)
        if value is None:
            self._refuse_null(name)
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{name} must be an integer")
        return value

    def size(self, name: str) -> int | None:
        """Read an integer that is not negative."""
        value = self.integer(name)
        if value is not None and value < 0:
            raise self.error(f"{name} must not be negative")
        return value

    def items(self, name: str) -> list[object] | None:
        """Read an array."""
        value = self.fields.get(name)
        if value is None:
            self._refuse_null(name)
            return None
        if not isinstance(value, list):
            raise self.error(f"{name} must be an array")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        """Read an array of strings."""
        items = self.items(name)
        if items is None:
            return None
        texts = tuple(item for item in items if isinstance(item, str))
        if len(texts) != len(items):
            raise self.error(f"{name} must hold strings")
        return texts

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Read an array of integers."""
        items = self.items(name)
        if items is None:
            return None
        numbers = tuple(
            item for item in items if isinstance(item, int) and not isinstance(item, bool)
        )
        if len(numbers) != len(items):
            raise self.error(f"{name} must hold integers")
        return numbers

    def _refuse_null(self, name: str) -> None:
        if name in self.fields:
            raise self.error(f"{name} must not be null")
