"""Two S3 servers take turns at being killed, wiped and replaced, ten times, under load."""

from tests.blobstore.s3_quorum import tell


async def test_ten_replacements_fail_nothing_and_lose_nothing(tmp_path):
    load = await tell(tmp_path, phase_s=3.0, largest=500_000, rounds=10, pause_s=0.1)
    assert load.failures == []
    assert load.slowest_s < 20
