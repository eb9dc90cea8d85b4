"""What the environment says of the way out: which certificates to trust, which proxy to take."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from serve_app.errors import ConfigError

_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def tls_context() -> ssl.SSLContext:
    """Verify servers against the system's store, or the one the environment names.

    OpenSSL itself reads ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``; ``REQUESTS_CA_BUNDLE`` (a file or a directory, as
    in requests) is used when neither is set.

    Raises:
        ConfigError: one of the variables names a path that is not there. OpenSSL would trust nothing, silently.
    """
    named = {variable: os.environ[variable] for variable in _BUNDLE_VARIABLES if os.environ.get(variable)}
    missing = [f"{variable}: no such path: {path}" for variable, path in named.items() if not Path(path).exists()]
    if missing:
        raise ConfigError(missing)
    bundle = named.get("REQUESTS_CA_BUNDLE")
    if bundle is None or len(named) > 1:
        return ssl.create_default_context()
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)


def proxy_for(url: URL) -> tuple[URL | None, dict[str, str] | None]:
    """The proxy for ``url`` and the headers with its credentials; ``(None, None)`` goes directly.

    ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` in either case, as the standard library reads
    them. aiohttp's own ``trust_env`` is not used: it asks a thread twice for every request.

    Raises:
        ValueError: the proxy is neither ``http://`` nor ``https://``.
    """
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or proxy_bypass(f"{url.host}:{url.port}"):
        return None, None
    proxy = URL(named if "://" in named else f"http://{named}")
    if proxy.scheme not in {"http", "https"} or not proxy.host:
        raise ValueError(f"its proxy has the scheme {proxy.scheme!r}; http and https are supported")
    if proxy.user is None:
        return proxy, None
    credentials = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return proxy.with_user(None), {"Proxy-Authorization": credentials}
