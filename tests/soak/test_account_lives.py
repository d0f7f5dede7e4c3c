"""Many random lives of accounts (`tests/services/life_machine.py`)."""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.services.life_machine import AccountLives

EXAMPLES = int(os.environ.get("PDS_SOAK_LIVES", "2000"))

TestManyAccountLives = pytest.mark.timeout(3600)(AccountLives.TestCase)
TestManyAccountLives.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
