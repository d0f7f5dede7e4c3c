"""What all tests share: a loop, how Hypothesis looks for examples, and what starts only once."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support_loop import PatientLoop
from tests.support_postgres import drop_databases
from tests.support_s3 import S3Server, running_s3

# How fast a machine is says nothing about the code. With HYPOTHESIS_PROFILE=ci, which Hypothesis
# itself does not read, the examples are the same in every run as well.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "patient"))


def pytest_asyncio_loop_factories() -> dict[str, type[PatientLoop]]:
    return {"patient": PatientLoop}


@pytest.fixture(autouse=True)
def databases_go_with_the_test() -> Iterator[None]:
    """What servers of the test kept in PostgreSQL is removed when they have ended."""
    yield
    drop_databases()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> S3Server:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
