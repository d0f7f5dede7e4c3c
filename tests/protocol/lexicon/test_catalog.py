"""Catalogs: what is known, what is refused, and references between documents."""

from typing import Any

import pytest

from pds.protocol.lexicon.catalog import Catalog, LexiconError, SchemaError
from pds.protocol.lexicon.definitions import StringDef
from pds.protocol.lexicon.links import check_links, find_missing
from pds.protocol.lexicon.validate import Compiler, Form


def document(nsid: str, **defs: Any) -> dict[str, Any]:
    return {"lexicon": 1, "id": nsid, "defs": defs}


def record_of(key: str = "any", **properties: Any) -> dict[str, Any]:
    return {"type": "record", "key": key, "record": {"type": "object", "properties": properties}}


def a_ref(ref: str) -> dict[str, Any]:
    return {"type": "ref", "ref": ref}


def a_union(*refs: str) -> dict[str, Any]:
    return {"type": "union", "refs": list(refs)}


@pytest.mark.parametrize(
    ("key", "right", "wrong"),
    [
        ("any", ["self", "a:b~c", "A_1"], ["", ".", "..", "a/b", "é", "a" * 513]),
        ("tid", ["3jzfcijpj2z2a"], ["self", "3jzfcijpj2z2", "zzzzzzzzzzzzz"]),
        ("nsid", ["net.example.thing"], ["self", "net.example"]),
        ("literal:self", ["self"], ["Self", "self2", ""]),
    ],
)
def test_record_keys_follow_the_declared_kind(key: str, right: list[str], wrong: list[str]) -> None:
    """LEX-10, LEX-25."""
    catalog = Catalog.from_documents([document("net.example.thing", main=record_of(key))])
    value = {"$type": "net.example.thing"}
    for rkey in (*right, None):
        assert catalog.validate_record("net.example.thing", rkey, value) == "valid"
    for rkey in wrong:
        with pytest.raises(LexiconError) as caught:
            catalog.validate_record("net.example.thing", rkey, value)
        assert caught.value.path == "rkey"


def test_unknown_collections_are_neither_valid_nor_invalid() -> None:
    """LEX-63."""
    assert Catalog([]).validate_record("net.example.thing", "any/key", [1]) == "unknown"


def test_document_without_a_main_record_is_judged() -> None:
    """A name that is known for something else is no collection; one without main is unknown."""
    catalog = Catalog.from_documents(
        [
            document("net.example.ask", main={"type": "query"}),
            document("net.example.defs", other={"type": "token"}),
        ]
    )
    with pytest.raises(LexiconError, match="not a type of record"):
        catalog.validate_record("net.example.ask", "a", {"$type": "net.example.ask"})
    assert catalog.validate_record("net.example.defs", "a", {}) == "unknown"


@pytest.mark.parametrize(
    "field",
    [
        a_ref("net.example.gone"),
        a_ref("#gone"),
        a_union("#gone"),
        {"type": "array", "items": a_ref("#gone")},
        {"type": "object", "properties": {"x": a_ref("#gone")}},
        a_ref("#middle"),
    ],
)
def test_record_with_a_reference_that_leads_nowhere_is_unknown(field: dict[str, Any]) -> None:
    """LEX-11: never half applied, though this record does not even use the field."""
    middle = {"type": "object", "properties": {"x": a_ref("net.example.gone#thing")}}
    catalog = Catalog.from_documents(
        [document("net.example.thing", main=record_of(p=field), middle=middle)]
    )
    for _ in range(2):
        assert catalog.validate_record("net.example.thing", "a", {"p": 1}) == "unknown"
    with pytest.raises(SchemaError, match="not defined"):
        catalog.check_all_links()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (a_ref("#token"), "nothing may refer"),
        (a_ref("net.example.ask"), "nothing may refer"),
        (a_ref("net.example.set"), "nothing may refer"),
        (a_union("#token"), "only objects and records"),
        (a_union("#text"), "only objects and records"),
        (a_union("#list"), "only objects and records"),
        (a_union("net.example.ask"), "only objects and records"),
    ],
)
def test_references_to_the_wrong_type_make_it_unknown(field: dict[str, Any], message: str) -> None:
    """LEX-5."""
    catalog = Catalog.from_documents(
        [
            document(
                "net.example.thing",
                main=record_of(p=field),
                token={"type": "token"},
                text={"type": "string"},
                list={"type": "array", "items": {"type": "string"}},
            ),
            document("net.example.ask", main={"type": "query"}),
            document("net.example.set", main={"type": "permission-set", "permissions": []}),
        ]
    )
    assert catalog.validate_record("net.example.thing", "a", {}) == "unknown"
    with pytest.raises(SchemaError, match=message):
        catalog.check_all_links()


def test_references_to_records_and_plain_data_are_fine() -> None:
    """LEX-5."""
    catalog = Catalog.from_documents(
        [
            document(
                "net.example.thing",
                main=record_of(p=a_ref("net.example.other"), q=a_union("net.example.other")),
                text={"type": "string"},
            ),
            document("net.example.other", main=record_of(t=a_ref("net.example.thing#text"))),
        ]
    )
    catalog.check_all_links()
    inner = {"$type": "net.example.other", "t": "x"}
    value = {"$type": "net.example.thing", "p": inner, "q": inner}
    assert catalog.validate_record("net.example.thing", "a", value) == "valid"
    with pytest.raises(LexiconError, match=r"record/q/t: must be a string"):
        catalog.validate_record("net.example.thing", "a", {**value, "q": {**inner, "t": 1}})


def test_unlisted_type_whose_own_schema_is_unusable_is_accepted() -> None:
    """LEX-11, LEX-23."""
    catalog = Catalog.from_documents(
        [
            document("net.example.thing", main=record_of(p=a_union())),
            document(
                "net.example.half",
                main={"type": "object", "properties": {"x": a_ref("net.example.gone")}},
            ),
        ]
    )
    value = {"$type": "net.example.thing", "p": {"$type": "net.example.half", "x": 1}}
    for _ in range(2):
        assert catalog.validate_record("net.example.thing", "a", value) == "valid"


def test_first_document_of_an_id_counts() -> None:
    """A later one cannot replace what is known (LEX-65)."""
    catalog = Catalog.from_documents(
        [
            document("net.example.thing", main=record_of()),
            document("net.example.thing", main=record_of("tid")),
        ]
    )
    assert catalog.refused == {"net.example.thing": "given twice"}
    assert catalog.validate_record("net.example.thing", "a", {"$type": "net.example.thing"}) == (
        "valid"
    )


def test_refused_documents_are_named_with_the_reason() -> None:
    """LEX-11."""
    catalog = Catalog.from_documents([document("net.example.thing"), {"lexicon": 1}, 7])
    assert list(catalog.refused) == ["net.example.thing", "document 1", "document 2"]
    assert "at least one definition" in catalog.refused["net.example.thing"]


def test_definitions_are_found_by_full_name() -> None:
    """LEX-4."""
    catalog = Catalog.from_documents(
        [document("net.example.thing", main=record_of(), text={"type": "string"})]
    )
    assert catalog.definition("net.example.thing#text") == StringDef()
    assert catalog.definition("net.example.thing") is not None
    assert catalog.definition("net.example.thing#main") is None


def test_permission_sets_are_found() -> None:
    """By NSID, as an OAuth scope includes them."""
    catalog = Catalog.from_documents(
        [
            document("net.example.set", main={"type": "permission-set", "permissions": []}),
            document("net.example.thing", main=record_of()),
        ]
    )
    assert catalog.permission_set("net.example.set") is not None
    assert catalog.permission_set("net.example.thing") is None
    assert catalog.permission_set("net.example.gone") is None


def test_names_that_are_not_data_are_never_compiled() -> None:
    """LEX-3."""
    catalog = Catalog.from_documents([document("net.example.thing", token={"type": "token"})])
    for name in ("net.example.thing#token", "net.example.gone"):
        with pytest.raises(SchemaError):
            Compiler(catalog.definition, Form.DATA).named(name)
    with pytest.raises(SchemaError, match="not defined"):
        check_links("net.example.gone", catalog.definition)


def test_documents_over_a_base_refer_to_it_and_never_replace_it() -> None:
    """LEX-65: a bundled schema holds, whatever is published under its name."""
    base = Catalog.from_documents(
        [document("net.example.base", main={"type": "object", "properties": {}})]
    )
    ref = {"type": "ref", "ref": "net.example.base"}
    thing = document("net.example.thing", main=record_of(item=ref))
    impostor = document("net.example.base", main={"type": "string"})
    made = Catalog.from_documents([thing, impostor])
    catalog = Catalog(made.documents.values(), base=base)
    record = {"$type": "net.example.thing", "item": {}}
    assert catalog.validate_record("net.example.thing", "a", record) == "valid"
    with pytest.raises(LexiconError, match="must be an object"):
        catalog.validate_record("net.example.thing", "a", record | {"item": "text"})
    assert catalog.validate_record("net.example.base2", "a", record) == "unknown"


def test_what_is_missing_is_found_in_circles_too() -> None:
    """LEX-12: everything that can be reached and is not there, once."""
    circle = {
        "type": "object",
        "properties": {
            "self": {"type": "ref", "ref": "net.example.thing"},
            "one": {"type": "ref", "ref": "net.example.gone#a"},
            "two": {"type": "union", "refs": ["net.example.gone#b", "#here"]},
        },
    }
    here = {"type": "object", "properties": {"x": {"type": "ref", "ref": "net.example.gone#a"}}}
    catalog = Catalog.from_documents([document("net.example.thing", main=circle, here=here)])
    missing = find_missing("net.example.thing", catalog.definition)
    assert missing == {"net.example.gone#a", "net.example.gone#b"}
    assert find_missing("net.example.no", catalog.definition) == {"net.example.no"}
