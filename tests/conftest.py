"""What tests of several packages start only once."""

import pytest

from tests.support_s3 import S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> S3Server:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server
