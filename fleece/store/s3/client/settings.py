"""How a bucket is reached, from the environment and the profiles that all tools for S3 know.

botocore reads them: AWS_ACCESS_KEY_ID and its like, AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE,
AWS_CONFIG_FILE, roles of containers and instances, web identities, credential_process, AWS_REGION,
AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_S3, AWS_CA_BUNDLE. It takes 0.2 s and 20 MiB to load, so only
this module and `signing` import it, where they need it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib import request
from urllib.parse import unquote, urlsplit

from fleece.environment import child_environment, store_secrets
from fleece.errors import StoreError, UsageError
from fleece.store.s3.client.endpoint import Endpoint, Server, endpoint_of, server_of
from fleece.store.s3.client.problems import SECRETS

_REGION = "us-east-1"
"""What servers of one's own call theirs, and AWS its first."""

_NAME_OF_REGION = re.compile(r"[a-z0-9-]{1,40}")

_STYLES = ("auto", "path", "virtual")


class Credentials(Protocol):
    """A source of credentials, which renews them when it must."""

    def get_frozen_credentials(self) -> Any:
        """Those of now: access_key, secret_key and token."""


@dataclass(frozen=True)
class Proxy:
    """What connections go through.

    Attributes:
        server: it.
        user: name and password; None: it wants none.
    """

    server: Server
    user: str | None = None


@dataclass(frozen=True)
class Settings:
    """How a bucket is reached.

    Attributes:
        endpoint: where requests go.
        region: that they are signed for.
        aws: the server is Amazon's.
        credentials: who we are.
        authorities: PEM file or folder of what a server's certificate may be signed by; None:
            whom the system trusts.
        proxy: that is gone through; None: none.
    """

    endpoint: Endpoint
    region: str
    aws: bool
    credentials: Credentials
    authorities: str | None = None
    proxy: Proxy | None = None


@contextlib.contextmanager
def _botocore_errors() -> Iterator[None]:
    """Turn what botocore says of the user's settings into an error of ours."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise UsageError(f"the settings for S3: {error}", hint=f"check {SECRETS}") from error


def settings_for(bucket: str) -> Settings:
    """Read how a bucket is reached.

    Raises:
        UsageError: botocore is not installed, a setting is wrong, or there are no credentials.
    """
    try:
        import botocore.session
    except (ImportError, AttributeError) as error:  # of old parts of it beside new ones
        raise UsageError(
            f"botocore, which s3:// needs, cannot be loaded ({error})",
            hint="pip install 'fleece-backup[s3]'",
        ) from error
    with _botocore_errors():
        session = botocore.session.Session()
        scoped: Mapping[str, Any] = session.get_scoped_config()
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or _REGION
        given = _endpoint_url(session, scoped)
        where = given or _amazons(region)
        server, path = server_of(where, "AWS_ENDPOINT_URL")
        credentials = _credentials(session)
        authorities = session.get_config_variable("ca_bundle")
    in_host = _in_host(bucket, scoped, own=given is not None)
    endpoint = endpoint_of(bucket, server, path, in_host=in_host)
    if authorities is not None and not os.path.exists(authorities):
        raise UsageError("is not there", where=f"AWS_CA_BUNDLE {authorities}")
    return Settings(
        endpoint, region, given is None, credentials, authorities, proxy_for(endpoint.server)
    )


def _endpoint_url(session: Any, scoped: Mapping[str, Any]) -> str | None:
    """The server that the user names; None: Amazon's."""
    from botocore.configprovider import ConfiguredEndpointProvider

    if str(session.get_config_variable("ignore_configured_endpoint_urls")).lower() == "true":
        return None
    found: str | None = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=scoped, client_name="s3"
    ).provide()
    return found or None


def _amazons(region: str) -> str:
    """The server of a region. Those of secret clouds have other names: the user says theirs."""
    if not _NAME_OF_REGION.fullmatch(region):
        raise UsageError("is no region of AWS", where=f"AWS_REGION {region}")
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _in_host(bucket: str, scoped: Mapping[str, Any], *, own: bool) -> bool:
    """Whether the bucket's name is a part of the host's, for which a server needs names in DNS.

    Amazon's have them, but no certificate for names with a dot.
    """
    section = scoped.get("s3")
    style = (section if isinstance(section, dict) else {}).get("addressing_style") or "auto"
    if style not in _STYLES:
        hint = f"write one of {', '.join(_STYLES)}"
        raise UsageError("is no style", where=f"addressing_style {style}", hint=hint)
    fits = "." not in bucket and "_" not in bucket and bucket == bucket.lower()
    return style == "virtual" or (style == "auto" and not own and fits)


def _credentials(session: Any) -> Credentials:
    """Who we are, by botocore's chain; a program of the user's is started as all others are."""
    from botocore.credentials import ProcessProvider

    chain = session.get_component("credential_provider")
    starting = functools.partial(subprocess.Popen, env=child_environment(**store_secrets()))
    profile = session.get_config_variable("profile") or "default"
    program = ProcessProvider(
        profile_name=profile, load_config=lambda: session.full_config, popen=starting
    )
    chain.insert_before(ProcessProvider.METHOD, program)
    found: Credentials | None = session.get_credentials()
    if found is None:
        raise UsageError("there are no credentials for S3", hint=f"set {SECRETS}")
    return found


def proxy_for(server: Server) -> Proxy | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a server.

    Raises:
        UsageError: it is no URL, or one that TLS is spoken with.
    """
    known = request.getproxies_environment()
    url = known.get(server.scheme) or known.get("all")
    if not url or request.proxy_bypass(server.host):
        return None
    name = f"{server.scheme.upper()}_PROXY"
    url = url if "://" in url else f"http://{url}"
    if not url.startswith("http://"):
        raise UsageError("only proxies that are http:// are known", where=name)
    parts = urlsplit(url)
    bare = f"http://{parts.netloc.rpartition('@')[2]}"
    user = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(server_of(bare, name)[0], user)


def frozen(credentials: Credentials, where: str) -> Any:
    """The credentials of now.

    Raises:
        StoreError: they could not be renewed.
    """
    from botocore.exceptions import BotoCoreError

    try:
        return credentials.get_frozen_credentials()
    except BotoCoreError as error:
        what = f"the credentials cannot be renewed ({error})"
        raise StoreError(what, where=where, hint=f"check {SECRETS}") from error
