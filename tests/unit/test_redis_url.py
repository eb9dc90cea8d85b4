"""What ``cache.redis_url`` may say, and how it is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.redis_url import RedisUrl, Topology, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://cache", RedisUrl(Topology.SERVER, (("cache", 6379),))),
        ("redis://[::1]:7/3", RedisUrl(Topology.SERVER, (("::1", 7),), db=3)),
        ("redis://[::1]", RedisUrl(Topology.SERVER, (("::1", 6379),))),
        (
            "rediss://me:p%40ss@cache:7?ssl_check_hostname=False&ssl_ca_certs=/ca.pem",
            RedisUrl(
                Topology.SERVER,
                (("cache", 7),),
                is_tls=True,
                options={
                    "username": "me",
                    "password": "p@ss",
                    "ssl_check_hostname": False,
                    "ssl_ca_certs": "/ca.pem",
                },
            ),
        ),
        ("unix:///run/a%20b.sock?db=2", RedisUrl(Topology.SERVER, path="/run/a b.sock", db=2)),
        ("redis+cluster://a,b:7", RedisUrl(Topology.CLUSTER, (("a", 6379), ("b", 7)))),
        (
            "rediss+sentinel://:open@a,b:7/answers/1?sentinel_password=ajar",
            RedisUrl(
                Topology.SENTINEL,
                (("a", 26379), ("b", 7)),
                is_tls=True,
                service="answers",
                db=1,
                options={"password": "open"},
                sentinel_options={"password": "ajar"},
            ),
        ),
    ],
)
def test_a_url_is_taken_apart(url: str, address: RedisUrl) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://cache", "unknown scheme"),
        ("unix+cluster:///a", "unknown scheme"),
        ("redis://", "names no host"),
        ("redis+cluster://a,", "names no host"),
        ("redis://a:0", "a port must be a number from 1 to 65535"),
        ("redis://a:65536", "a port must be a number"),
        ("redis://a:x", "a port must be a number"),
        ("redis://a,b", "several hosts need"),
        ("redis://a/one", "a database must be a number"),
        ("redis://a/1/2", "more behind the host"),
        ("redis+cluster://a/1", "database 0 only"),
        ("redis+sentinel://a", "lacks the service's name"),
        ("redis://a?ssl_ca_certs=/x", "unknown option behind '\\?' without rediss"),
        ("redis://a?socket_timeout=30", "unknown option behind '\\?'; valid: client_name, db, password, username"),
        ("rediss://a?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of none, optional, required"),
        ("redis://:pa#ss@a", "%23"),
        ("unix://host/path", "third slash"),
        ("redis://[::1", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_redis_url(url)


@given(st.sampled_from(["redis://", "rediss+sentinel://", "redis+cluster://", "unix://", ""]), st.text())
def test_no_text_is_anything_but_an_address_or_a_refusal(scheme: str, rest: str) -> None:
    try:
        address = parse_redis_url(scheme + rest)
    except ValueError:
        return
    assert bool(address.hosts) != bool(address.path)


def test_a_password_is_in_no_refusal_and_in_no_printed_address() -> None:
    assert "hush" not in repr(parse_redis_url("redis://:hush@a?password=hush2"))
    for url in ("redis://:hush@a:b", "redis://:hush#@a", "redis://:hush@a?hush=1", "redis+sentinel://:hush@a"):
        with pytest.raises(ValueError) as refused:
            parse_redis_url(url)
        assert "hush" not in str(refused.value)
