"""Where Ray encrypts what replicas say to each other, nothing is said past it."""

import pytest
import ray

from serve_app.adapters.serve_address import node_address


@pytest.mark.parametrize("value", ["1", "true"])
def test_there_is_no_address_for_channels_where_ray_uses_tls(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RAY_USE_TLS", value)
    with pytest.raises(OSError, match="RAY_USE_TLS"):
        node_address()


@pytest.mark.parametrize("value", [None, "0"])
def test_else_it_is_the_one_that_ray_reaches_the_machine_at(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_USE_TLS", value)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.7")
    assert node_address() == "192.0.2.7"
