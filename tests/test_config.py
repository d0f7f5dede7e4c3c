"""Settings: sources, the reference's names, and every way to get them wrong."""

from pathlib import Path

import pytest

from pds.app.blobstores import s3_settings
from pds.config import (
    WITHOUT_EFFECT,
    Config,
    check_for_serving,
    load_config,
    reference_table,
    settings_fields,
)
from pds.errors import ConfigError

REFERENCE_INSTALL = {
    "PDS_HOSTNAME": "pds.example.org",
    "PDS_JWT_SECRET": "0123456789abcdef0123456789abcdef",
    "PDS_ADMIN_PASSWORD": "0123456789abcdef",
    "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "17" * 32,
    "PDS_DATA_DIRECTORY": "/pds",
    "PDS_BLOBSTORE_DISK_LOCATION": "/pds/blocks",
    "PDS_BLOB_UPLOAD_LIMIT": "104857600",
    "PDS_DID_PLC_URL": "https://plc.directory",
    "PDS_BSKY_APP_VIEW_URL": "https://api.bsky.app",
    "PDS_BSKY_APP_VIEW_DID": "did:web:api.bsky.app",
    "PDS_REPORT_SERVICE_URL": "https://mod.bsky.app",
    "PDS_REPORT_SERVICE_DID": "did:plc:ar7c4by46qjdydhdevvrndac",
    "PDS_CRAWLERS": "https://bsky.network, https://relay.example.org",
    "LOG_ENABLED": "true",
    "PDS_EMAIL_SMTP_URL": "",
    "HOME": "/somewhere",
}


def test_the_settings_of_a_reference_install_are_enough() -> None:
    config = load_config(REFERENCE_INSTALL)
    check_for_serving(config)
    assert config.public_url == "https://pds.example.org"
    assert config.service_did == "did:web:pds.example.org"
    assert config.handle_domains == (".pds.example.org",)
    assert config.limits.blob_bytes == 104_857_600
    assert config.federation.crawlers == ("https://bsky.network", "https://relay.example.org")
    assert config.blob_location == Path("/pds/blocks")
    assert config.sign_up.invite_required
    assert not config.is_unguarded
    assert config.notices == ()


def test_localhost_means_plain_http_with_the_port() -> None:
    config = load_config({"PDS_HOSTNAME": "localhost", "PDS_PORT": "3000"})
    assert config.public_url == "http://localhost:3000"
    assert config.service_did == "did:web:localhost%3A3000"
    assert config.handle_domains == (".test",)
    assert config.with_port(99).public_url == "http://localhost:99"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pds.toml"
    file.write_text(
        'hostname = "file.example"\nport = 4000\ncrawlers = ["https://a.example"]\n'
        'dev_mode = true\nlog_level = "debug"\n[blobstore]\ndisk_location = "/blobs"\n'
    )
    config = load_config({"PDS_CONFIG_FILE": str(file), "PDS_HOSTNAME": "env.example"})
    assert config.host.hostname == "env.example"
    assert config.listener.port == 4000
    assert config.federation.crawlers == ("https://a.example",)
    assert config.host.dev_mode
    assert config.blob_location == Path("/blobs")
    assert load_config({}, file=file).host.hostname == "file.example"


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef0123\n")
    assert load_config({"PDS_JWT_SECRET_FILE": str(file)}).secrets.jwt_secret == (
        "0123456789abcdef0123"
    )
    with pytest.raises(ConfigError, match="both set"):
        load_config({"PDS_JWT_SECRET_FILE": str(file), "PDS_JWT_SECRET": "x" * 20})
    with pytest.raises(ConfigError, match="PDS_JWT_SECRET_FILE: cannot read"):
        load_config({"PDS_JWT_SECRET_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"PDS_HOSTNAM": "x"}, "did you mean PDS_HOSTNAME"),
        ({"PDS_TOTALLY_UNHEARD_OF_THING": "x"}, "is not a setting"),
        ({"PDS_PORT": "many"}, "PDS_PORT"),
        ({"PDS_PORT": "-1"}, "PDS_PORT: must not be negative"),
        ({"PDS_PORT": "70000"}, "PDS_PORT: must be at most 65535"),
        ({"PDS_CRAWLERS": "https://a.example,b.example"}, "PDS_CRAWLERS: must be a URL"),
        ({"PDS_BSKY_APP_VIEW_CDN_URL_PATTERN": "https://a/%s/%s"}, "%s three times"),
        ({"PDS_BSKY_APP_VIEW_CDN_URL_PATTERN": "a/%s/%s/%s"}, "must be a URL"),
        ({"PDS_DID_PLC_READ_URL": "plc.directory"}, "PDS_DID_PLC_READ_URL: must be a URL"),
        ({"PDS_HANDLE_BACKUP_NAMESERVERS": "1.1.1.1,dns.example"}, "must be an IP address"),
        ({"PDS_DEV_MODE": "maybe"}, "PDS_DEV_MODE: must be true or false"),
        ({"PDS_HOSTNAME": "https://x.example"}, "PDS_HOSTNAME"),
        ({"PDS_HOSTNAME": "x.example:80"}, "PDS_HOSTNAME"),
        ({"PDS_SERVICE_DID": "nonsense"}, "PDS_SERVICE_DID"),
        ({"PDS_SERVICE_HANDLE_DOMAINS": "example.org"}, "must look like .example.org"),
        ({"PDS_HOSTNAME": "x.org", "PDS_SERVICE_HANDLE_DOMAINS": ".test"}, "PDS_DEV_MODE"),
        ({"PDS_DID_PLC_URL": "plc.directory"}, "must be a URL"),
        ({"PDS_JWT_SECRET": "short"}, "PDS_JWT_SECRET is too short"),
        ({"PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX": "xyz"}, "64 hex digits"),
        ({"PDS_MASTER_KEY": "12"}, "PDS_MASTER_KEY must be 64 hex digits"),
        ({"PDS_BSKY_APP_VIEW_URL": "https://a.example"}, "set both or neither"),
        ({"PDS_TRUSTED_PROXIES": "10.0.0.1/8"}, "PDS_TRUSTED_PROXIES"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL"),
        (
            {"PDS_BLOBSTORE_S3_BUCKET": "x", "PDS_BLOBSTORE_DISK_LOCATION": "/x"},
            "PDS_BLOBSTORE_DISK_LOCATION and PDS_BLOBSTORE_S3_BUCKET are both set",
        ),
        ({"PDS_BLOBSTORE_S3_ENDPOINT": "https://s3.example"}, "PDS_BLOBSTORE_S3_BUCKET is missing"),
        ({"PDS_BLOBSTORE_S3_ENDPOINT": "s3.example"}, "PDS_BLOBSTORE_S3_ENDPOINT: must be a URL"),
        (
            {"PDS_BLOBSTORE_S3_BUCKET": "x", "PDS_BLOBSTORE_S3_ACCESS_KEY_ID": "k"},
            "set both or neither",
        ),
        ({"PDS_BLOBSTORE_2_S3_REGION": "x"}, "set PDS_BLOBSTORE_2_S3_BUCKET"),
        ({"PDS_BLOBSTORE_4_S3_BUCKET": "x"}, "is not a setting"),
        ({"PDS_BLOBSTORE_WRITE_QUORUM": "2"}, "must be at most 1"),
        ({"PDS_PLC_ROTATION_KEY_KMS_KEY_ID": "x"}, "_PRIVATE_KEY_HEX instead"),
        ({"PDS_ENTRYWAY_URL": "https://e.example"}, "is not supported"),
        ({"PDS_HCAPTCHA_SITE_KEY": "x"}, "PDS_INVITE_REQUIRED=true"),
        ({"PDS_CONFIG_FILE": "no/such/file"}, "cannot read the settings file"),
    ],
)
def test_what_is_wrong_is_named_with_the_fix(values: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        load_config(values)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pds.toml"
    file.write_text("hostname = \n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config({}, file=file)
    file.write_text('hostnam = "x"\n')
    with pytest.raises(ConfigError, match="did you mean PDS_HOSTNAME"):
        load_config({}, file=file)


def test_no_secret_is_shown() -> None:
    values = dict.fromkeys(("PDS_JWT_SECRET", "PDS_ADMIN_PASSWORD"), "hush hush hush hush")
    assert "hush" not in repr(load_config(values))
    with pytest.raises(ConfigError) as caught:
        load_config({"PDS_MASTER_KEY": "hush"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "missing",
    ["PDS_JWT_SECRET", "PDS_ADMIN_PASSWORD", "PDS_PLC_ROTATION_KEY_K256_PRIVATE_KEY_HEX"],
)
def test_serving_needs_the_lasting_secrets(missing: str) -> None:
    values = {name: value for name, value in REFERENCE_INSTALL.items() if name != missing}
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        check_for_serving(load_config(values))


def test_the_bucket_settings_of_the_reference_are_understood() -> None:
    config = load_config(
        {
            "PDS_BLOBSTORE_S3_BUCKET": "blobs",
            "PDS_BLOBSTORE_S3_REGION": "eu-central-1",
            "PDS_BLOBSTORE_S3_ENDPOINT": "https://s3.example.org",
            "PDS_BLOBSTORE_S3_FORCE_PATH_STYLE": "true",
            "PDS_BLOBSTORE_S3_ACCESS_KEY_ID": "key",
            "PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY": "hush",
            "PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS": "20000",
            "PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS": "1500",
        }
    )
    [place] = config.blob_places.values()
    settings = s3_settings(place)
    assert settings.bucket == "blobs"
    assert settings.region == "eu-central-1"
    assert settings.endpoint == "https://s3.example.org"
    assert settings.force_path_style
    assert (settings.access_key_id, settings.secret_access_key) == ("key", "hush")
    assert (settings.upload_timeout_s, settings.request_timeout_s) == (20.0, 1.5)
    assert settings.presigned_read_s is None
    assert "hush" not in repr(config) + repr(settings)


def test_further_blob_stores_have_numbers(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    values = {
        "PDS_BLOBSTORE_DISK_LOCATION": "/blobs",
        "PDS_BLOBSTORE_2_S3_BUCKET": "two",
        "PDS_BLOBSTORE_2_S3_ACCESS_KEY_ID": "key",
        "PDS_BLOBSTORE_2_S3_SECRET_ACCESS_KEY_FILE": str(secret),
        "PDS_BLOBSTORE_3_DISK_LOCATION": "/more",
    }
    config = load_config(values)
    assert config.blob_write_quorum == 2
    places = config.blob_places
    assert places[1].disk_location == Path("/blobs")
    assert (places[2].s3_bucket, places[2].s3_secret_access_key) == ("two", "hush")
    assert places[3].disk_location == Path("/more")
    assert load_config({**values, "PDS_BLOBSTORE_WRITE_QUORUM": "1"}).blob_write_quorum == 1


def test_harmless_names_of_the_reference_leave_a_notice() -> None:
    config = load_config(dict.fromkeys(WITHOUT_EFFECT, "1"))
    assert len(config.notices) == len(WITHOUT_EFFECT)
    assert all("has no effect: " in notice for notice in config.notices)


def test_times_of_the_reference_are_milliseconds() -> None:
    values = {"PDS_REPO_BACKFILL_LIMIT_MS": "1500", "PDS_ID_RESOLVER_TIMEOUT": "250"}
    config = load_config(values)
    assert config.federation.backfill_s == 1.5
    assert config.identity.resolver_timeout_s == 0.25


def test_the_reference_page_has_every_setting_with_its_default() -> None:
    page = reference_table()
    for _, entry in settings_fields():
        assert f"`{entry.metadata['env']}`" in page
        assert entry.metadata["help"] in page
    assert "| `PDS_REPO_BACKFILL_LIMIT_MS` | `259200000` |" in page
    assert load_config({}) == Config()


def test_archives_in_the_clear_in_a_bucket_are_mentioned_at_every_start() -> None:
    bucket = {"PDS_ARCHIVE_S3_BUCKET": "archives"}
    [notice] = load_config(bucket).notices
    assert "unencrypted" in notice
    assert load_config({**bucket, "PDS_ARCHIVE_PASSPHRASE": "a phrase"}).notices == ()
    assert load_config({"PDS_ARCHIVE_DIRECTORY": "/archives"}).notices == ()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"PDS_ARCHIVE_S3_ENDPOINT": "https://s3.example.org"}, "PDS_ARCHIVE_S3_BUCKET is missing"),
        ({"PDS_ARCHIVE_S3_BUCKET": "b", "PDS_ARCHIVE_S3_ACCESS_KEY_ID": "k"}, "belong together"),
        ({"PDS_ARCHIVE_S3_BUCKET": "b", "PDS_ARCHIVE_S3_FOLDER": "/x"}, "without a slash"),
        ({"PDS_ARCHIVE_WITH_PREFERENCES": "true"}, "needs PDS_ARCHIVE_PASSPHRASE"),
    ],
)
def test_settings_of_archives_that_make_no_sense_are_refused(
    settings: dict[str, str], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(settings)
