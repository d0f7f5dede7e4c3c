"""Follow the references between definitions, and refuse the ones that lead astray.

Documents refer to each other and become known one by one, so this is judged when a definition is
first used, not when its document is read.
"""

from collections.abc import Callable, Iterator

from pds.protocol.lexicon.definitions import (
    ArrayDef,
    MethodDef,
    NamedDef,
    ObjectDef,
    PermissionSetDef,
    RecordDef,
    RefDef,
    TokenDef,
    UnionDef,
)
from pds.protocol.lexicon.nodes import SchemaError

Find = Callable[[str], NamedDef | None]
"""Looks up a definition by its full name."""


def check_links(root: str, find: Find) -> None:
    """Make sure that everything `root` can reach exists and may stand where it is named (LEX-5).

    Raises: SchemaError for a missing definition, or a target of the wrong type.
    """
    definition = find(root)
    if definition is None:
        raise SchemaError(f"{root}: not defined")
    seen = {root}
    waiting: list[NamedDef] = [definition]
    while waiting:
        for target, is_branch in _targets(waiting.pop()):
            found = find(target)
            if found is None:
                raise SchemaError(f"{target}: not defined")
            if is_branch and not isinstance(found, ObjectDef | RecordDef):
                raise SchemaError(f"{target}: a union may hold only objects and records")
            if isinstance(found, TokenDef | MethodDef | PermissionSetDef):
                raise SchemaError(f"{target}: is not data, so nothing may refer to it")
            if target not in seen:
                seen.add(target)
                waiting.append(found)


def find_missing(root: str, find: Find) -> frozenset[str]:
    """Return the full names that `root` can reach and that nothing defines, `root` included."""
    seen, missing = {root}, set()
    waiting = [root]
    while waiting:
        name = waiting.pop()
        definition = find(name)
        if definition is None:
            missing.add(name)
            continue
        new = {target for target, _is_branch in _targets(definition)} - seen
        seen |= new
        waiting += new
    return frozenset(missing)


def _targets(definition: NamedDef) -> Iterator[tuple[str, bool]]:
    """Yield the names that a definition refers to, and whether as a branch of a union."""
    match definition:
        case RefDef():
            yield definition.target, False
        case UnionDef():
            for target in definition.targets:
                yield target, True
        case ArrayDef():
            yield from _targets(definition.items)
        case ObjectDef():
            for field in definition.properties.values():
                yield from _targets(field)
        case RecordDef():
            yield from _targets(definition.record)
        case MethodDef():
            for payload in (definition.input, definition.output):
                if payload is not None and payload.schema is not None:
                    yield from _targets(payload.schema)
            if definition.message is not None:
                yield from _targets(definition.message)
        case _:
            return
