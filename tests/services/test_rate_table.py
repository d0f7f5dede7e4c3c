"""The table of limits: the reference's figures, and methods that exist."""

from pathlib import Path

import pytest

from pds.protocol.data import Json
from pds.services.lexicons import load_catalog
from pds.services.limits import RateSettings
from pds.services.principal import Principal, PrincipalKind
from pds.services.rate_limits import Key
from pds.services.rate_table import (
    APART,
    GLOBAL,
    METHODS,
    OF_ACCOUNT,
    When,
    make_limits,
    write_points,
)
from pds.store.accounts import AccountStatus

LIMITS = make_limits(RateSettings())


def test_every_method_of_the_table_has_a_lexicon_and_every_limit_is_used() -> None:
    catalog = load_catalog()
    named = {charge.limit for charges in METHODS.values() for charge in charges}
    assert named | set(APART.values()) | {GLOBAL, OF_ACCOUNT} == set(LIMITS)
    for nsid in (*METHODS, *APART):
        assert catalog.method(nsid) is not None, nsid


def test_the_page_for_operators_names_every_method_that_is_counted() -> None:
    page = (Path(__file__).parents[2] / "docs/operate/limits.md").read_text()
    for nsid in (*METHODS, *APART):
        assert nsid.rpartition(".")[2] in page, nsid


def test_names_in_bodies_are_fields_of_the_lexicons() -> None:
    for nsid, charges in METHODS.items():
        for charge in charges:
            is_named = LIMITS[charge.limit].key in (Key.NAME, Key.ADDRESS_AND_NAME)
            assert bool(charge.name_field) == is_named, nsid


@pytest.mark.parametrize(
    ("nsid", "expected"),
    [
        ("com.atproto.server.createAccount", {(100, 300, Key.ADDRESS)}),
        ("com.atproto.server.deleteAccount", {(50, 300, Key.ADDRESS)}),
        ("com.atproto.lexicon.resolveLexicon", {(100, 300, Key.ADDRESS)}),
        ("com.atproto.server.resetPassword", {(50, 300, Key.ADDRESS)}),
        (
            "com.atproto.server.requestPasswordReset",
            {
                (15, 3600, Key.ADDRESS),
                (50, 86_400, Key.ADDRESS),
                (5, 3600, Key.ADDRESS_AND_NAME),
                (15, 86_400, Key.ADDRESS_AND_NAME),
                (30, 3600, Key.NAME),
                (100, 86_400, Key.NAME),
            },
        ),
        *(
            (nsid, {(5, 3600, Key.ACCOUNT), (15, 86_400, Key.ACCOUNT)})
            for nsid in (
                "com.atproto.server.requestAccountDelete",
                "com.atproto.server.requestEmailUpdate",
                "com.atproto.server.requestEmailConfirmation",
                "com.atproto.identity.requestPlcOperationSignature",
            )
        ),
        (
            "com.atproto.identity.updateHandle",
            {(10, 300, Key.ACCOUNT), (50, 86_400, Key.ACCOUNT)},
        ),
        *(
            (
                f"com.atproto.repo.{name}",
                {(5000, 3600, Key.ACCOUNT), (35_000, 86_400, Key.ACCOUNT)},
            )
            for name in ("createRecord", "putRecord", "deleteRecord", "applyWrites")
        ),
    ],
)
def test_the_figures_are_those_of_the_reference(
    nsid: str, expected: set[tuple[int, int, Key]]
) -> None:
    """XRPC-70; requestPlcOperationSignature and the limit by name are ours."""
    found = [LIMITS[charge.limit] for charge in METHODS[nsid]]
    assert {(entry.points, entry.window_s, entry.key) for entry in found} == expected
    assert (LIMITS["requests"].points, LIMITS["exports"].points) == (3000, 6000)


def test_limits_of_mail_of_different_purposes_are_apart() -> None:
    """A confirmation asked for too often must not keep anybody from deleting the account."""
    asked = [nsid for nsid in METHODS if "request" in nsid]
    limits = [charge.limit for nsid in asked for charge in METHODS[nsid]]
    assert len(limits) == len(set(limits))


@pytest.mark.parametrize(
    ("writes", "points"),
    [
        ([], 0),
        (["create", "update", "delete"], 6),
        (["create"] * 200, 600),
        (["delete"] * 3, 3),
    ],
)
def test_a_batch_costs_the_sum_of_its_writes(writes: list[str], points: int) -> None:
    entries: list[Json] = [{"$type": f"com.atproto.repo.applyWrites#{kind}"} for kind in writes]
    assert write_points({"writes": entries}) == points


@pytest.mark.parametrize(
    ("status", "limits"),
    [
        (AccountStatus.ACTIVE, {"uploads", "upload-bytes"}),
        (AccountStatus.DEACTIVATED, {"uploads-moving", "upload-bytes-moving"}),
        (None, {"uploads", "upload-bytes"}),
    ],
)
def test_whoever_moves_in_may_upload_more(status: AccountStatus | None, limits: set[str]) -> None:
    principal = Principal(PrincipalKind.SESSION, status=status)
    charges = METHODS["com.atproto.repo.uploadBlob"]
    assert {charge.limit for charge in charges if charge.applies_to(principal)} == limits
    assert LIMITS["uploads-moving"].points == 10 * LIMITS["uploads"].points == 10_000
    assert all(charge.when is not When.ALWAYS for charge in charges)
