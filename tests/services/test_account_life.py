"""Property: no order of acts on accounts makes the firehose lie or a token outlive its right.

A short run; `tests/soak/test_account_lives.py` is the long one.
"""

from hypothesis import HealthCheck, settings

from tests.services.life_machine import AccountLives
from tests.support_postgres import is_chosen

EXAMPLES = 8 if is_chosen() else 20
"""A new database for each takes two seconds on a PostgreSQL server."""

TestAccountLives = AccountLives.TestCase
TestAccountLives.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
