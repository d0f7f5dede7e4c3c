"""Our own schema documents against the published ones: the same facts, the same verdicts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pds.protocol.lexicon.catalog import Catalog, LexiconError
from pds.protocol.lexicon.definitions import (
    ArrayDef,
    MethodDef,
    NamedDef,
    ObjectDef,
    RecordDef,
    StringDef,
    TokenDef,
)
from pds.protocol.lexicon.links import check_links
from pds.protocol.lexicon.validate import Compiler, Form, run_check
from pds.services.lexicons import lexicon_folder, load_catalog
from tests.support_lexicon import ValueMaker, loose_data, mutations, published_dir

OUR_DOCUMENTS = {
    path.relative_to(lexicon_folder()): path for path in sorted(lexicon_folder().rglob("*.json"))
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def ours() -> Catalog:
    return load_catalog()


@pytest.fixture(scope="module")
def published() -> Catalog:
    catalog = Catalog.from_documents(read(path) for path in published_dir().rglob("*.json"))
    assert not catalog.refused
    return catalog


def facts(value: Any) -> Any:
    """A definition as plain comparable data: order of names and of choices left out."""
    if isinstance(value, dict):
        plain = {
            key: facts(item)
            for key, item in value.items()
            if not (key == "description" and isinstance(item, str))
        }
        for key in ("required", "nullable", "refs", "knownValues", "accept"):
            if isinstance(plain.get(key), list):
                plain[key] = sorted(plain[key])
        for key in ("required", "nullable"):
            if plain.get(key) == []:
                del plain[key]
        if plain.get("type") == "params" and not plain.get("properties"):
            return None
        if plain.get("type") == "object":
            plain.setdefault("properties", {})
        if isinstance(plain.get("ref"), str):
            plain["ref"] = plain["ref"].removesuffix("#main")
        return {key: item for key, item in plain.items() if item is not None}
    if isinstance(value, list):
        return [facts(item) for item in value]
    return value


@pytest.mark.parametrize("path", OUR_DOCUMENTS, ids=str)
def test_our_definitions_state_the_published_facts(path: Path) -> None:
    """Names, types, limits and error names agree in every definition that both have."""
    theirs = published_dir() / path
    if not theirs.is_file():
        pytest.fail(f"{path} is not among the published documents")
    our_defs, their_defs = read(OUR_DOCUMENTS[path])["defs"], read(theirs)["defs"]
    assert our_defs.keys() <= their_defs.keys()
    for name, definition in our_defs.items():
        assert facts(definition) == facts(their_defs[name]), name


def test_every_published_method_and_record_of_the_core_is_ours(published: Catalog) -> None:
    """LEX-64, LEX-100: all of com.atproto, and all types of record."""
    ours = {str(path.with_suffix("")).replace("/", ".") for path in OUR_DOCUMENTS}
    core = {nsid for nsid in published.documents if nsid.startswith("com.")}
    records = {
        nsid for nsid in published.documents if isinstance(published.definition(nsid), RecordDef)
    }
    assert len(core) > 80
    assert len(records) == 21
    assert core | records <= ours


def named_values(catalog: Catalog) -> list[str]:
    """The names of all definitions that describe data."""
    return [
        name
        for document in catalog.documents.values()
        for name, definition in document.full_names().items()
        if isinstance(definition, ObjectDef | RecordDef)
    ]


def verdict(compiler: Compiler, name: str, value: Any) -> str | None:
    try:
        run_check(compiler.named(name), value, "value")
    except LexiconError as error:
        return str(error)
    return None


def test_made_values_get_the_same_verdict_everywhere(ours: Catalog, published: Catalog) -> None:
    """Valid values and ones with one change: both catalogs, both forms, and the known verdict.

    LEX-20 to LEX-32.
    """
    judges = [
        [Compiler(catalog.definition, form) for catalog in (ours, published)]
        for form in (Form.JSON, Form.DATA)
    ]
    counts = {True: 0, False: 0}
    for name in named_values(ours):
        check_links(name, ours.definition)
        for seed in range(2):
            value = ValueMaker(ours, (name, seed)).named(name)
            changes = [("as made", value, True)]
            changes += [(m.label, m.value, m.is_valid) for m in mutations(ours, name, value, seed)]
            for label, changed, is_valid in changes:
                forms = (changed, loose_data(changed))
                for compilers, shown in zip(judges, forms, strict=True):
                    our_verdict, their_verdict = (verdict(c, name, shown) for c in compilers)
                    assert our_verdict == their_verdict, (name, label)
                    assert (our_verdict is None) == is_valid, (name, label, our_verdict, shown)
                counts[is_valid] += 1
    assert counts[True] > 700
    assert counts[False] > 5_000


def bodies(definition: NamedDef | None) -> list[str]:
    if not isinstance(definition, MethodDef):
        return []
    payloads = {"input": definition.input, "output": definition.output}
    return [side for side, payload in payloads.items() if payload and payload.schema]


def test_made_bodies_and_answers_get_the_same_verdict(ours: Catalog, published: Catalog) -> None:
    """The payloads of every method that we describe."""
    count = 0
    for nsid in ours.documents:
        definition = ours.definition(nsid)
        for side in bodies(definition):
            assert isinstance(definition, MethodDef)
            payload = definition.input if side == "input" else definition.output
            assert payload is not None
            for seed in range(3):
                value = ValueMaker(ours, (nsid, side, seed)).value(payload.schema)
                for catalog in (ours, published):
                    method = catalog.method(nsid)
                    assert method is not None
                    check = method.check_input if side == "input" else method.check_output
                    check(value)
                    with pytest.raises(LexiconError, match=f"^{side}"):
                        check([value])
                count += 1
    assert count > 200


def test_every_published_document_is_usable(published: Catalog) -> None:
    """LEX-1 to LEX-11: nothing that is really published is refused, and every link leads on."""
    assert len(published.documents) > 300
    published.check_all_links()


def texts_in(definition: object) -> Iterator[StringDef]:
    """All string definitions inside a definition."""
    if isinstance(definition, StringDef):
        yield definition
    elif isinstance(definition, ArrayDef):
        yield from texts_in(definition.items)
    elif isinstance(definition, ObjectDef):
        for field in definition.properties.values():
            yield from texts_in(field)
    elif isinstance(definition, RecordDef):
        yield from texts_in(definition.record)


def test_known_values_that_are_tokens_of_ours_are_defined(ours: Catalog) -> None:
    """Those of other namespaces (moderation tools) are free text to us."""
    count = 0
    for document in ours.documents.values():
        for definition in document.defs.values():
            for text in texts_in(definition):
                for value in text.known_values:
                    if value.partition("#")[0] in ours.documents:
                        assert isinstance(ours.definition(value), TokenDef), value
                        count += 1
    assert count > 10
