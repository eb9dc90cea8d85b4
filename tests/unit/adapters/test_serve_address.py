"""Where HTTP is served is Ray's to say; what it does not say counts as open to all."""

import types

import ray.serve.context

from serve_app.adapters.serve_address import listening_host
from serve_app.core.operator_access import is_loopback


def test_it_is_what_the_running_instance_says(monkeypatch) -> None:
    client = types.SimpleNamespace(http_config=types.SimpleNamespace(host="127.0.0.1"))
    monkeypatch.setattr(ray.serve.context, "_get_global_client", lambda: client)
    assert listening_host() == "127.0.0.1"


def test_where_ray_cannot_be_asked_nothing_is_local() -> None:
    assert not is_loopback(listening_host() or "")


def test_another_ray_without_that_question_makes_nothing_local(monkeypatch) -> None:
    monkeypatch.delattr(ray.serve.context, "_get_global_client")
    assert listening_host() is None
