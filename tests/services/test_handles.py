"""Which handles this host gives out."""

import pytest

from pds.errors import ConfigError, RequestError
from pds.protocol.syntax import Handle
from pds.services.handles import HandlePolicy, HandleSettings, reserved_labels

POLICY = HandlePolicy(
    HandleSettings(service_domains=(".pds.com", ".users.pds.com", ".test"), dev=True)
)


def refused(text: str, policy: HandlePolicy = POLICY) -> str:
    with pytest.raises(RequestError) as error:
        policy.check_ours(policy.parse(text))
    assert error.value.status == 400
    return error.value.name


@pytest.mark.parametrize(
    "text", ["bob.pds.com", "a-b.test", "x" * 18 + ".test", "BOB.Users.Pds.com"]
)
def test_good_handles_are_given_out_in_lower_case(text: str) -> None:
    """ID-1, ID-20."""
    handle = POLICY.parse(text)
    POLICY.check_ours(handle)
    assert handle == text.lower()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("bob", "InvalidHandle"),
        ("", "InvalidHandle"),
        ("bob_.pds.com", "InvalidHandle"),
        ("-bob.pds.com", "InvalidHandle"),
        ("bo.pds.com", "InvalidHandle"),
        ("x" * 19 + ".pds.com", "InvalidHandle"),
        ("a.bob.pds.com", "InvalidHandle"),
        (".pds.com", "InvalidHandle"),
        ("bob.local", "InvalidHandle"),
        ("handle.invalid", "InvalidHandle"),
        ("admin.pds.com", "HandleNotAvailable"),
        ("did.test", "HandleNotAvailable"),
        ("bob.example.com", "UnsupportedDomain"),
        ("bobpds.com", "UnsupportedDomain"),
        ("pds.com", "UnsupportedDomain"),
    ],
)
def test_bad_handles_are_refused_by_name(text: str, name: str) -> None:
    """ID-2, ID-20."""
    assert refused(text) == name


def test_longest_service_domain_decides_what_the_label_is() -> None:
    assert POLICY.is_ours(Handle("bob.users.pds.com"))
    POLICY.check_ours(Handle("bob.users.pds.com"))


def test_a_service_domain_is_nobodys_handle() -> None:
    assert refused("users.pds.com") == "HandleNotAvailable"


def test_test_names_exist_in_development_only() -> None:
    """ID-2."""
    policy = HandlePolicy(HandleSettings(service_domains=(".test",)))
    assert refused("bob.test", policy) == "InvalidHandle"


def test_reserved_labels_and_lengths_are_settings() -> None:
    """ID-22."""
    policy = HandlePolicy(
        HandleSettings(
            service_domains=(".pds.com",),
            min_label_chars=1,
            max_label_chars=30,
            reserved_labels=frozenset({"zed"}),
        )
    )
    policy.check_ours(Handle("admin.pds.com"))
    policy.check_ours(Handle("a.pds.com"))
    assert refused("zed.pds.com", policy) == "HandleNotAvailable"
    policy.check_ours(Handle("zed.pds.com"), allow_reserved=True)


def test_handle_too_long_for_its_dns_record_is_refused() -> None:
    """ID-3."""
    long = ".".join(["a" * 60] * 4) + ".com"
    assert len(long) == 247
    with pytest.raises(RequestError):
        POLICY.parse(long)


@pytest.mark.parametrize("domain", ["pds.com", ".PDS.com", ""])
def test_service_domains_are_checked_at_start(domain: str) -> None:
    with pytest.raises(ConfigError, match="PDS_SERVICE_HANDLE_DOMAINS"):
        HandlePolicy(HandleSettings(service_domains=(domain,)))


def test_names_of_the_domains_are_given_out_by_the_operator_where_that_is_wanted() -> None:
    """ID-20."""
    domains = (".pds.com", ".users.pds.com")
    policy = HandlePolicy(HandleSettings(service_domains=domains, root_handles=True))
    for text in ("pds.com", "users.pds.com"):
        assert policy.is_ours(Handle(text))
        assert refused(text, policy) == "HandleNotAvailable"
        policy.check_ours(Handle(text), allow_reserved=True)
    without = HandlePolicy(HandleSettings(service_domains=domains))
    assert not without.is_ours(Handle("pds.com"))
    for text in ("pds.com", "users.pds.com"):
        with pytest.raises(RequestError):
            without.check_ours(Handle(text), allow_reserved=True)


@pytest.mark.parametrize(
    ("changes", "reserved", "free"),
    [
        ([], {"admin", "www"}, {"king"}),
        (["king"], {"admin", "king"}, set()),
        (["-admin", "king"], {"www", "king"}, {"admin"}),
        (["king", "-*"], {"king"}, {"admin", "www"}),
    ],
)
def test_the_list_of_reserved_labels_is_changed_or_replaced(
    changes: list[str], reserved: set[str], free: set[str]
) -> None:
    """ID-22."""
    labels = reserved_labels(changes)
    assert reserved <= labels
    assert not free & labels
