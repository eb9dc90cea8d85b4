"""Who is an operator: whoever has the key, or with none set whoever is at this machine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.operator_access import Caller, OperatorAccess, is_loopback
from serve_app.errors import Forbidden, KeyRequired

KEY = "c0rrect-horse"
KEYED = OperatorAccess(KEY.encode())
LOCAL = OperatorAccess(is_local=True)
HERE = "127.0.0.1:8000"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_lets_an_operator_through_from_anywhere(scheme) -> None:
    KEYED.check(Caller(f"{scheme} {KEY}", "switchyard.example", "https://elsewhere.example", is_forwarded=True))


@pytest.mark.parametrize("sent", [None, "", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY} x", "Bearer \xe9"])
def test_without_a_readable_key_one_is_asked_for(sent) -> None:
    with pytest.raises(KeyRequired):
        KEYED.check(Caller(sent, HERE))


@pytest.mark.parametrize("sent", ["Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}"])
def test_a_wrong_key_is_refused_and_not_repeated(sent) -> None:
    with pytest.raises(Forbidden) as refused:
        KEYED.check(Caller(sent, HERE))
    assert sent.split()[1] not in str(refused.value)


def test_with_a_key_set_this_machine_needs_it_too() -> None:
    with pytest.raises(KeyRequired):
        OperatorAccess(KEY.encode(), is_local=True).check(Caller(host=HERE))


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40))
def test_exactly_one_key_fits(other) -> None:
    assert KEYED.allows(Caller(f"Bearer {other}")) is (other == KEY)


@pytest.mark.parametrize("host", [HERE, "127.0.0.1", "localhost:8000", "LocalHost", "[::1]:8000", "[::1]", "127.9.9.9"])
def test_with_no_key_set_this_machine_is_enough(host) -> None:
    LOCAL.check(Caller(host=host))
    LOCAL.check(Caller(host=host, origin=f"http://{host}"))


def test_when_others_can_reach_the_address_no_request_counts_as_this_machines_own() -> None:
    open_to_all = OperatorAccess()
    for caller in (Caller(host=HERE), Caller("Bearer ", HERE), Caller("Bearer x", HERE, f"http://{HERE}")):
        with pytest.raises(Forbidden, match="SWITCHYARD_OPERATOR_KEY"):
            open_to_all.check(caller)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1:8000",
        "0.0.0.0:8000",
        "evil.example@127.0.0.1",
        "127.0.0.1:8000:1",
        "[::1",
        "::1",
        "localhost:",
        "127.0.0.1:x",
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(host) -> None:
    assert not LOCAL.allows(Caller(host=host))
    assert not LOCAL.allows(Caller(host=host, origin=f"http://{host}"))


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://127.0.0.1",
        "http://127.0.0.1:3000",
        "http://localhost:8000",
        "http://127.0.0.1:8000.evil.example",
        "http://127.0.0.1:8000/",
        "file://127.0.0.1:8000",
    ],
)
def test_a_page_of_another_site_is_refused(origin) -> None:
    assert not LOCAL.allows(Caller(host=HERE, origin=origin))


def test_what_a_proxy_passed_on_is_not_this_machines_own() -> None:
    with pytest.raises(Forbidden, match="proxy"):
        LOCAL.check(Caller(host=HERE, is_forwarded=True))


@given(st.text(max_size=20), st.none() | st.text(max_size=20), st.none() | st.text(max_size=20))
def test_whatever_the_headers_hold_the_answer_is_yes_or_no(host, origin, authorization) -> None:
    for access in (KEYED, LOCAL, OperatorAccess()):
        assert access.allows(Caller(authorization, host, origin)) in {True, False}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.1.2.3", False),
        ("localhost.example", False),
        ("*", False),
    ],
)
def test_which_listening_addresses_are_this_machines_own(host, expected) -> None:
    assert is_loopback(host) is expected


def test_the_key_is_in_no_representation() -> None:
    assert KEY not in repr(KEYED) + str(KEYED)
