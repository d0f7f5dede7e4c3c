"""DID documents: tolerant reading, strict identity, our own rendering (ID-1, ID-30..ID-34)."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pds.protocol.diddoc import (
    DidDocument,
    InvalidDidDocument,
    parse_did_document,
    parse_origin,
    render_web_document,
)
from pds.protocol.encodings import encode_base58
from pds.protocol.keys import generate_secret, make_signer
from pds.protocol.syntax import parse_did

DID = parse_did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
KEY = make_signer("k256", generate_secret("k256", b"k" * 32)).public_key
OTHER = make_signer("p256", generate_secret("p256", b"o" * 32)).public_key
METHOD = {
    "id": f"{DID}#atproto",
    "type": "Multikey",
    "controller": DID,
    "publicKeyMultibase": KEY.multibase,
}
SERVICE = {
    "id": "#atproto_pds",
    "type": "AtprotoPersonalDataServer",
    "serviceEndpoint": "https://pds.example.com",
}


def document(**changes: Any) -> DidDocument:
    content = {
        "@context": ["https://www.w3.org/ns/did/v1"],
        "id": DID,
        "alsoKnownAs": ["at://Alice.example.com"],
        "verificationMethod": [METHOD],
        "service": [SERVICE],
        **changes,
    }
    return parse_did_document(content, DID)


def test_a_usual_document_is_read() -> None:
    doc = document()
    assert doc.handle == "alice.example.com"
    assert doc.signing_key == KEY
    assert doc.pds_endpoint == "https://pds.example.com"
    assert doc.source["id"] == DID


@pytest.mark.parametrize("content", [None, [], "x", {}, {"id": "did:plc:other"}, {"id": 5}])
def test_a_document_of_another_did_is_refused(content: object) -> None:
    """ID-30."""
    with pytest.raises(InvalidDidDocument):
        parse_did_document(content, DID)


def test_the_first_valid_at_alias_is_the_claimed_handle() -> None:
    aliases = ["https://a.example", 4, "at://-bad-", "at://x/y", "at://b.example", "at://c.example"]
    assert document(alsoKnownAs=aliases).handle == "b.example"
    assert document(alsoKnownAs=["at://did:plc:abc", "AT://a.example"]).handle is None
    assert document(alsoKnownAs="at://a.example").handle is None


@pytest.mark.parametrize("prefix", ["", DID])
def test_relative_and_absolute_ids_are_accepted(prefix: str) -> None:
    """ID-31, ID-32, ID-33."""
    doc = document(
        verificationMethod=[{**METHOD, "id": f"{prefix}#atproto"}],
        service=[{**SERVICE, "id": f"{prefix}#atproto_pds"}],
    )
    assert doc.key("#atproto") == KEY
    assert doc.service("#atproto_pds") == doc.service("atproto_pds") is not None


@pytest.mark.parametrize("other", ["did:plc:other#atproto", "atproto", "", 5, None])
def test_ids_of_another_did_are_ignored(other: object) -> None:
    assert document(verificationMethod=[{**METHOD, "id": other}]).signing_key is None


def test_unknown_and_malformed_entries_are_ignored_and_the_first_match_counts() -> None:
    """ID-31, ID-32, ID-33."""
    second = {**METHOD, "publicKeyMultibase": OTHER.multibase}
    label = {**second, "id": "#atproto_label"}
    doc = document(
        verificationMethod=[None, {}, {**METHOD, "id": []}, label, METHOD, second],
        service=[5, {"id": "#x"}, {**SERVICE, "serviceEndpoint": {}}, SERVICE],
    )
    assert doc.signing_key == KEY
    assert doc.key("atproto_label") == OTHER
    assert doc.pds_endpoint == "https://pds.example.com"
    assert doc.key("missing") is None
    assert document(verificationMethod={"0": METHOD}, service=None).signing_key is None


def test_keys_of_another_controller_or_type_or_form_are_not_used() -> None:
    """ID-31."""
    for change in (
        {"controller": "did:plc:other"},
        {"type": "Ed25519VerificationKey2020"},
        {"publicKeyMultibase": "zQ3shnot"},
    ):
        assert document(verificationMethod=[{**METHOD, **change}]).signing_key is None


def test_legacy_key_types_are_read() -> None:
    """DM-53: the bare point, the curve named by the type."""
    legacy = {
        **METHOD,
        "type": "EcdsaSecp256r1VerificationKey2019",
        "publicKeyMultibase": "z" + encode_base58(OTHER.compressed),
    }
    assert document(verificationMethod=[legacy]).signing_key == OTHER


def test_the_pds_needs_its_type_and_a_plain_origin() -> None:
    """ID-32."""
    assert document(service=[{**SERVICE, "type": "Other"}]).pds_endpoint is None
    assert document(service=[]).pds_endpoint is None
    assert document(service=[{**SERVICE, "serviceEndpoint": "ftp://x"}]).pds_endpoint is None


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://pds.example.com", "https://pds.example.com"),
        ("https://pds.example.com/", "https://pds.example.com"),
        ("http://localhost:2583", "http://localhost:2583"),
        ("https://[::1]:8080", "https://[::1]:8080"),
        ("https://pds.example.com/path", None),
        ("https://pds.example.com/?q", None),
        ("https://pds.example.com#f", None),
        ("https://user@pds.example.com", None),
        ("https://pds.example.com:99999", None),
        ("https://pds.example.com:0", None),
        ("https://", None),
        ("https://a b", None),
        ("https://a\nb", None),
        ("https://[::1", None),
        ("//pds.example.com", None),
        ("https://é.example", None),
        ("https://" + "a" * 600, None),
    ],
)
def test_an_endpoint_is_scheme_host_and_port(url: str, origin: str | None) -> None:
    assert parse_origin(url) == origin


def test_our_own_document_can_be_read_back() -> None:
    """ID-34."""
    did = parse_did("did:web:pds.example.com")
    pds = ("AtprotoPersonalDataServer", "https://pds.example.com")
    content = render_web_document(did, services={"atproto_pds": pds})
    assert content["service"] == [
        {
            "id": "#atproto_pds",
            "type": "AtprotoPersonalDataServer",
            "serviceEndpoint": "https://pds.example.com",
        }
    ]
    assert "verificationMethod" not in content
    assert parse_did_document(content, did).pds_endpoint == "https://pds.example.com"


def test_the_document_that_a_did_web_user_is_to_publish_says_all_that_is_needed() -> None:
    """ID-41: we never edit it, so it must be right as it is shown."""
    did = parse_did("did:web:alice.example.com")
    shown = render_web_document(
        did,
        services={"atproto_pds": ("AtprotoPersonalDataServer", "https://pds.example.com")},
        keys={"atproto": KEY},
        also_known_as=("at://alice.example.com",),
    )
    doc = parse_did_document(shown, did)
    assert (doc.signing_key, doc.handle) == (KEY, "alice.example.com")
    assert doc.pds_endpoint == "https://pds.example.com"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(max_examples=60)
@given(entry=JSON, aliases=JSON)
def test_no_document_makes_reading_fail(entry: Any, aliases: Any) -> None:
    doc = document(verificationMethod=[entry], service=[entry, entry], alsoKnownAs=aliases)
    assert doc.signing_key is None
    assert doc.pds_endpoint is None
