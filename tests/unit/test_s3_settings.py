"""What an address of S3 names, and how the environment says that its bucket is reached."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleece.environment import child_environment, store_secrets
from fleece.errors import UsageError
from fleece.store.s3.client.address import Address, address_of
from fleece.store.s3.client.endpoint import Endpoint, Server, server_of
from fleece.store.s3.client.settings import Proxy, proxy_for, settings_for


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of who runs the tests."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """There are credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("S3://bucket/a/b c/", "bucket", "a/b c"),
        ("s3://Old_Bucket.1/a?b#c", "Old_Bucket.1", "a?b#c"),
    ],
)
def test_an_address_names_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    found = address_of(text)
    assert found == Address(bucket, prefix)
    assert address_of(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "s3:bucket",
        "s3://",
        "s3://ab",
        "s3://a..b",
        "s3://bucket/a//b",
        "s3://bucket/../x",
        "s3://bucket/a\nb",
        "s3://bucket/" + "x" * 513,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        address_of(text)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as refused:
        address_of("s3://access:hidden@bucket/x")
    assert "hidden" not in str(refused.value)
    for url in ("ftp://me:hidden@host", "http://me:hidden@host?x", "http://h:hidden"):
        with pytest.raises(UsageError) as refused:
            server_of(url, "AWS_ENDPOINT_URL")
        assert "me:hidden" not in str(refused.value)


def test_a_path_is_encoded_as_it_is_signed() -> None:
    endpoint = Endpoint(Server(False, "::1", 8333), "/bucket")
    assert str(endpoint.server) == "http://[::1]:8333"
    query = {"list-type": "2", "prefix": "a b/+"}
    assert endpoint.path(None, query) == "/bucket?list-type=2&prefix=a%20b%2F%2B"
    assert endpoint.path("a b/é+~", {}) == "/bucket/a%20b/%C3%A9%2B~"
    assert Endpoint(Server(True, "bucket.host", 443), "").path(None, {}) == "/"


def test_without_an_endpoint_it_is_amazons(known: pytest.MonkeyPatch) -> None:
    known.setenv("AWS_REGION", "eu-west-1")
    found = settings_for("bucket")
    assert found.endpoint == Endpoint(Server(True, "bucket.s3.eu-west-1.amazonaws.com", 443), "")
    assert (found.aws, found.region, found.authorities, found.proxy) == (
        *(True, "eu-west-1"),
        *(None, None),
    )
    dotted = settings_for("a.bucket").endpoint
    assert dotted == Endpoint(Server(True, "s3.eu-west-1.amazonaws.com", 443), "/a.bucket")


def test_an_endpoint_of_ones_own_has_the_bucket_in_the_path(known: pytest.MonkeyPatch) -> None:
    known.setenv("AWS_ENDPOINT_URL", "http://ceph:7480/")
    found = settings_for("bucket")
    assert found.endpoint == Endpoint(Server(False, "ceph", 7480), "/bucket")
    assert (found.aws, found.region) == (False, "us-east-1")
    known.setenv("AWS_ENDPOINT_URL_S3", "https://other")
    assert settings_for("bucket").endpoint.server == Server(True, "other", 443)
    known.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert settings_for("bucket").aws


def test_a_profile_says_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authorities = tmp_path / "ca.pem"
    authorities.touch()
    (tmp_path / "config").write_text(
        f"[profile far]\nregion = far-1\nca_bundle = {authorities}\n"
        "endpoint_url = https://far:444\ns3 =\n  addressing_style = virtual\n"
    )
    (tmp_path / "credentials").write_text(
        "[far]\naws_access_key_id = a\naws_secret_access_key = s\naws_session_token = t\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "far")
    found = settings_for("bucket")
    assert found.endpoint == Endpoint(Server(True, "bucket.far", 444), "")
    assert (found.region, found.authorities) == ("far-1", str(authorities))
    keys = found.credentials.get_frozen_credentials()
    assert (keys.access_key, keys.secret_key, keys.token) == ("a", "s", "t")
    monkeypatch.setenv("AWS_PROFILE", "near")
    with pytest.raises(UsageError, match="near"):
        settings_for("bucket")


def test_a_program_gives_the_credentials_and_sees_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/sh\n"
        f"env > {tmp_path}/seen\n"
        """echo '{"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s"}'\n"""
    )
    program.chmod(0o700)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    monkeypatch.setenv("FLEECE_PASSPHRASE", "hidden")
    assert settings_for("bucket").credentials.get_frozen_credentials().access_key == "a"
    assert "hidden" not in (tmp_path / "seen").read_text()
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UsageError, match="the settings for S3"):
        settings_for("bucket")


def test_programs_that_open_no_store_see_no_credentials(known: pytest.MonkeyPatch) -> None:
    known.setenv("AWS_SESSION_TOKEN", "token")
    seen = child_environment()
    assert seen["AWS_ACCESS_KEY_ID"] == "access"
    assert not {"secret", "token"} & set(seen.values())
    assert {"secret", "token"} == set(store_secrets().values())


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("AWS_ACCESS_KEY_ID", "", "there are no credentials for S3; set AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "ceph:7480", "AWS_ENDPOINT_URL: is no URL"),
        ("AWS_ENDPOINT_URL", "http://a/?b", "AWS_ENDPOINT_URL: has more than"),
        ("AWS_REGION", "a/b", "AWS_REGION a/b: is no region"),
        ("AWS_CA_BUNDLE", "/not/there", "AWS_CA_BUNDLE /not/there: is not there"),
        ("HTTPS_PROXY", "socks5://a", "HTTPS_PROXY: only proxies that are http://"),
    ],
)
def test_a_wrong_setting_is_told_by_its_name(
    known: pytest.MonkeyPatch, name: str, text: str, told: str
) -> None:
    known.setenv(name, text)
    with pytest.raises(UsageError, match=told):
        settings_for("bucket")


def test_the_proxy_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    far, near = Server(True, "far", 443), Server(False, "near", 80)
    assert proxy_for(far) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ss@proxy:3128")
    assert proxy_for(far) == Proxy(Server(False, "proxy", 3128), "me:p@ss")
    assert proxy_for(near) is None
    monkeypatch.setenv("http_proxy", "proxy:8080")
    assert proxy_for(near) == Proxy(Server(False, "proxy", 8080))
    monkeypatch.setenv("NO_PROXY", "far,near")
    assert proxy_for(far) is None
    assert proxy_for(near) is None


def test_who_has_no_store_in_a_bucket_loads_nothing_of_it(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from fleece.cli.main import main\n"
        "assert main(['init', sys.argv[1]]) == main(['list', sys.argv[1]]) == 0\n"
        "print([m for m in sys.modules if 'botocore' in m or 's3' in m or m == 'http.client'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
