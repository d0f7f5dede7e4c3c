"""What opens doors stands in no text of the values that hold it: texts end up in logs."""

import pytest

from pds.protocol.oauth.answers import Redirect, TokenAnswer
from pds.services.migration_session import Tokens
from pds.services.migration_sign_in import StateParam
from pds.services.migration_state import MoveSecrets
from pds.services.migration_work import Given
from pds.services.oauth_client import OAuthSession, PendingSignIn

HIDDEN = "hidden-value"


@pytest.mark.parametrize(
    "value",
    [
        Given(
            password=HIDDEN,
            auth_factor_token=HIDDEN,
            service_token=HIDDEN,
            new_password=HIDDEN,
            invite_code=HIDDEN,
            plc_token=HIDDEN,
        ),
        Tokens(HIDDEN, HIDDEN),
        MoveSecrets(access=HIDDEN, refresh=HIDDEN, plc_token=HIDDEN, sign_in=HIDDEN),
        MoveSecrets(oauth={"access": HIDDEN}),
        Redirect(state=HIDDEN, iss=None, code=HIDDEN, error=None, description=""),
        TokenAnswer(access=HIDDEN, refresh=HIDDEN, scope="atproto", sub="did:web:a.example"),
        StateParam(1, HIDDEN),
        PendingSignIn(
            issuer="i",
            token_endpoint="t",
            revocation_endpoint=None,
            client_id="c",
            redirect_uri="r",
            verifier=HIDDEN,
            key=HIDDEN,
        ),
        OAuthSession(
            issuer="i",
            token_endpoint="t",
            revocation_endpoint=None,
            client_id="c",
            key=HIDDEN,
            access=HIDDEN,
            refresh=HIDDEN,
            scope="s",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_secrets_of_a_move_are_in_no_text(value: object) -> None:
    assert HIDDEN not in repr(value)
