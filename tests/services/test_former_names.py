"""While a host has two names, nothing that was made under the former one is refused."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pds.config import load_config
from pds.errors import ConfigError, RequestError
from pds.protocol.keys import make_signer
from pds.protocol.plc import PlcService, make_update, sign_operation
from pds.protocol.service_auth import sign_service_token
from pds.protocol.syntax import Nsid
from pds.services.account_states import AccountStates
from pds.services.account_status import IdentityCheck
from pds.services.hosting import Hosting
from pds.services.identity_checks import CONFIRM_S, ROUND_S, IdentityChecks
from pds.services.principal import Scope
from pds.services.server_info import ServerInfo, ServerInfoSettings
from pds.services.service_tokens import ServiceTokens
from pds.services.session_tokens import SessionTokens
from tests.services.account_host import ALICE, SECRET, SERVICE_DID
from tests.services.creation_host import PUBLIC_URL, ROTATION
from tests.services.identity_host import IdentityHost, identity_host

NOW_S = 1_760_000_000
NEW_DID = "did:web:new.test"
NEW_URL = "https://new.test"
METHOD = Nsid("com.atproto.repo.uploadBlob")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[IdentityHost]:
    async with identity_host(tmp_path) as host:
        yield host


def test_settings_know_the_former_names() -> None:
    settings = {"PDS_HOSTNAME": "new.example", "PDS_FORMER_HOSTNAMES": "Old.example, older.example"}
    config = load_config(settings)
    assert config.former_urls == ("https://old.example", "https://older.example")
    assert config.further_service_dids == ("did:web:old.example", "did:web:older.example")
    assert config.former_handle_domains == (".old.example", ".older.example")
    assert load_config({"PDS_HOSTNAME": "new.example"}).further_service_dids == ()
    kept = load_config(
        {
            **settings,
            "PDS_SERVICE_DID": "did:web:old.example",
            "PDS_SERVICE_HANDLE_DOMAINS": ".old.example",
            "PDS_FORMER_HANDLE_DOMAINS": ".people.example",
        }
    )
    assert kept.further_service_dids == ("did:web:new.example", "did:web:older.example")
    assert kept.former_handle_domains == (".people.example",)
    grown = load_config({"PDS_HOSTNAME": "a.example", "PDS_FORMER_HOSTNAMES": "localhost"})
    assert grown.former_urls == ("http://localhost:2583",)
    assert grown.former_handle_domains == (".test",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PDS_FORMER_HOSTNAMES", "https://old.example"),
        ("PDS_FORMER_HOSTNAMES", "new.example"),
        ("PDS_FORMER_HANDLE_DOMAINS", "old.example"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_config({"PDS_HOSTNAME": "new.example", name: value})


def test_sessions_made_under_the_former_name_go_on() -> None:
    old = SessionTokens(secrets=[SECRET], service_did=SERVICE_DID)
    access = old.issue_access(
        did=ALICE, scope=Scope.ACCESS, session_id="s", issued_s=NOW_S, expires_s=NOW_S + 60
    )
    refresh = old.issue_refresh(
        did=ALICE, token_id="t", session_id="s", issued_s=NOW_S, expires_s=NOW_S + 60
    )
    both = SessionTokens(secrets=[SECRET], service_did=NEW_DID, former_dids=[SERVICE_DID])
    assert both.parse_access(access, now_s=NOW_S).did == ALICE
    assert both.parse_refresh(refresh, now_s=NOW_S).token_id == "t"
    new = SessionTokens(secrets=[SECRET], service_did=NEW_DID)
    with pytest.raises(RequestError, match="another service"):
        new.parse_access(access, now_s=NOW_S)


async def test_service_tokens_for_either_name_are_accepted(host: IdentityHost) -> None:
    """XRPC-41: and for no other."""
    alice = await host.add()
    signer = make_signer("k256", b"\x41" * 32)
    log = host.plc.directory.get_log(alice.did)
    assert log is not None
    assert log.last is not None
    keys = {"atproto": signer.public_key.did_key}
    update = sign_operation(make_update(log.last, verification_methods=keys), ROTATION)
    host.plc.directory.submit(alice.did, update.to_json())
    tokens = ServiceTokens(
        engine=host.engine,
        wall=host.clock,
        keystore=host.keystore,
        accounts=host.cache,
        resolver=host.resolver,
        service_did=NEW_DID,
        former_dids=[SERVICE_DID],
    )
    now_s = host.clock.now_us() // 1_000_000

    def token(aud: str) -> str:
        return sign_service_token(
            signer, iss=alice.did, aud=aud, lxm=METHOD, iat=now_s, exp=now_s + 60, jti=aud
        )

    for aud in (NEW_DID, SERVICE_DID, f"{SERVICE_DID}#atproto_pds"):
        assert (await tokens.authenticate(token(aud), lxm=METHOD)).did == alice.did
    with pytest.raises(RequestError) as caught:
        await tokens.authenticate(token("did:web:other.test"), lxm=METHOD)
    assert caught.value.name == "BadJwtAudience"


def test_each_name_has_its_document() -> None:
    """ID-34."""
    settings = ServerInfoSettings(
        version="1",
        service_did=NEW_DID,
        hostname="new.test",
        public_url=NEW_URL,
        handle_domains=(".new.test",),
        invite_required=False,
        blob_upload_limit=1,
        former_hostnames=("old.test",),
    )
    info = ServerInfo(settings)
    for host, did in (
        ("old.test", "did:web:old.test"),
        ("OLD.test:443", "did:web:old.test"),
        ("new.test", NEW_DID),
        ("alice.old.test", NEW_DID),
        ("", NEW_DID),
    ):
        document = info.did_document(host)
        assert isinstance(document, dict)
        assert document["id"] == did
        [service] = document["service"]  # type: ignore[misc]
        assert service["serviceEndpoint"] == NEW_URL  # type: ignore[index, call-overload]
    assert info.is_own_name("old.test")
    assert not info.is_own_name("other.test")


async def test_relays_and_tools_may_ask_by_either_name(host: IdentityHost) -> None:
    hosting = Hosting(engine=host.engine, hostname="new.test", former_hostnames=("old.test",))
    assert (await hosting.status("Old.test")).hostname == "new.test"
    with pytest.raises(RequestError):
        await hosting.status("other.test")


async def test_an_identity_that_names_the_former_url_is_here(host: IdentityHost) -> None:
    """ID-69, ID-70, ACC-6: it may be activated, is not taken for moved, and its owner may sign."""
    alice = await host.add()
    check = IdentityCheck(
        engine=host.engine,
        keystore=host.keystore,
        plc=host.plc_client,
        documents=host.resolver,
        public_url=NEW_URL,
        former_urls=(PUBLIC_URL,),
        rotation_key=None,
    )
    await check.check(alice)
    checks = IdentityChecks(
        engine=host.engine,
        keystore=host.keystore,
        resolver=host.resolver,
        handles=host.policy,
        states=AccountStates(keystore=host.keystore, sessions=host.sessions, cache=host.cache),
        public_url=NEW_URL,
        former_urls=(PUBLIC_URL,),
    )
    for _ in range(2):
        assert await checks.recheck(host.clock.now_us()) == 1
        host.clock.advance(ROUND_S + CONFIRM_S)
    assert (await host.account(alice.did)).is_active

    host.plc_settings = type(host.plc_settings)(public_url=NEW_URL, former_urls=(PUBLIC_URL,))
    host._build()
    log = host.plc.directory.get_log(alice.did)
    assert log is not None
    assert log.last is not None
    aliases = ["at://alice.pds.test", "https://alice.example"]
    operation = sign_operation(make_update(log.last, also_known_as=aliases), ROTATION)
    await host.operations.submit(alice.aid, operation.to_json())
    assert host.state(alice.did).also_known_as == tuple(aliases)
    elsewhere = {"atproto_pds": PlcService("AtprotoPersonalDataServer", "https://other.test")}
    operation = sign_operation(make_update(operation, services=elsewhere), ROTATION)
    with pytest.raises(RequestError, match="endpoint"):
        await host.operations.submit(alice.aid, operation.to_json())
