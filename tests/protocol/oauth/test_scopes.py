"""What granted scopes allow. Spec: (OAUTH-80, OAUTH-81, OAUTH-82)"""

import pytest

from pds.protocol.oauth.scopes import ANY, ScopeSet

LXM = "com.atproto.server.createAccount"
AUD = "did:web:pds.example.com#atproto_pds"


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (f"rpc:{LXM}?aud=*", True),
        (f"rpc?lxm={LXM}&aud=*", True),
        (f"rpc?lxm=a.b.c&lxm={LXM}&aud=*", True),
        (f"rpc:{LXM}?aud=did:web:pds.example.com%23atproto_pds", True),
        ("rpc:*?aud=did:web:pds.example.com%23atproto_pds", True),
        ("transition:generic", True),
        (f"rpc:{LXM}?aud=did:web:other.example.com%23atproto_pds", False),
        ("rpc:com.atproto.server.*?aud=*", False),
        ("rpc:*?aud=*", False),
        ("rpc:%2A?aud=%2A", False),
        (f"rpc:{LXM}", False),
        (f"rpc:{LXM}?", False),
        (f"rpc:{LXM}?aud=*&aud=*", False),
        (f"rpc:{LXM}?lxm={LXM}&aud=*", False),
        (f"rpc:{LXM}?aud=*&more=1", False),
        (f"rpc:{LXM}?aud", False),
        (f"rpc:{LXM}?aud=", False),
        (f"RPC:{LXM}?aud=*", False),
        ("rpc?aud=*", False),
        ("atproto", False),
    ],
)
def test_calls_of_services(scope: str, *, allowed: bool) -> None:
    assert ScopeSet.parse(f"atproto {scope}").allows_rpc(LXM, AUD) is allowed


def test_the_broad_scope_of_before_leaves_out_messages() -> None:
    assert not ScopeSet.parse("atproto transition:generic").allows_rpc("chat.bsky.convo.x", AUD)
    assert not ScopeSet.parse("atproto transition:generic").allows_identity(ANY)
    assert not ScopeSet.parse("atproto transition:generic").allows_account("status", "manage")


@pytest.mark.parametrize(
    ("scope", "reads", "manages"),
    [
        ("account:email", True, False),
        ("account:email?action=read", True, False),
        ("account?attr=email&action=manage", True, True),
        ("account:email?action=read&action=manage", True, True),
        ("transition:email", True, False),
        ("account:repo", False, False),
        ("account:email?action=write", False, False),
        ("account?action=read", False, False),
        ("account?attr=email&attr=repo", False, False),
        ("account:", False, False),
    ],
)
def test_what_belongs_to_the_account(scope: str, *, reads: bool, manages: bool) -> None:
    granted = ScopeSet.parse(scope)
    assert granted.allows_account("email", "read") is reads
    assert granted.allows_account("email", "manage") is manages


def test_the_identity() -> None:
    assert ScopeSet.parse("identity:*").allows_identity("handle")
    assert ScopeSet.parse("identity:*").allows_identity(ANY)
    assert ScopeSet.parse("identity:handle").allows_identity("handle")
    assert not ScopeSet.parse("identity:handle").allows_identity(ANY)
    assert not ScopeSet.parse("").allows_identity("handle")
