"""The peers: what a person would serve a DSPy program with instead, each as its documentation says."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import dspy
import yaml

from benchmarks.application import MODELS, PROGRAM
from benchmarks.load import TEXT, Body
from benchmarks.peer import Peer, Place

SERVERS = Path(__file__).with_name("peer_servers")
DSPY = f"dspy=={version('dspy')}"
HTTP_QUESTION = {"text": TEXT}


def fastapi(call: str, workers: int) -> Peer:
    title = {"asyncify": "as the tutorial has it, `asyncify`, 4 threads", "acall": "`acall` in its place"}[call]
    plural = "s" if workers > 1 else ""
    return Peer(
        f"FastAPI, {title}, {workers} worker{plural}",
        "fastapi",
        "fastapi",
        (DSPY, f"fastapi=={version('fastapi')}", "uvicorn[standard]"),
        lambda place: uvicorn_command(place, workers),
        "/predict",
        HTTP_QUESTION,
        {"PEER_CALL": call},
    )


def uvicorn_command(place: Place, workers: int) -> Sequence[str]:
    served = ["-m", "uvicorn", "fastapi_server:app", "--app-dir", str(SERVERS), "--workers", str(workers)]
    return [str(place.python), *served, "--port", str(place.port), "--no-access-log", "--log-level", "warning"]


def litellm_command(place: Place) -> Sequence[str]:
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": place.api_base, "api_key": "x"}}
        for name in MODELS
    ]
    no_key = {"dangerously_permit_weak_or_unset_master_key": True}  # as the others have none
    config = {"model_list": models, "general_settings": no_key}
    Path(place.directory, "config.yaml").write_text(yaml.safe_dump(config))
    return [place.tool("litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(place.port)]


def mlflow_command(place: Place) -> Sequence[str]:
    script = f'"{place.python}" "{SERVERS / "mlflow_model.py"}" model && exec "{place.tool("mlflow")}" models serve '
    return ["sh", "-c", f"{script} -m model -p {place.port} -h 127.0.0.1 --env-manager local"]


def dspy_cli_command(place: Place) -> Sequence[str]:
    package = place.directory / "src" / "asking"
    for directory in (package, package / "modules"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "__init__.py").touch()
    shutil.copy(SERVERS / "dspy_cli_program.py", package / "modules" / "ask.py")
    lm = {"model": "openai/small", "model_type": "chat", "api_base": place.api_base, "api_key": "x", "cache": False}
    config = {"app_id": "asking", "models": {"default": "small", "registry": {"small": lm}}}
    Path(place.directory, "dspy.config.yaml").write_text(yaml.safe_dump(config))
    runner = [str(place.python), "-m", "dspy_cli.server.runner"]
    return [*runner, "--host", "127.0.0.1", "--port", str(place.port)]


def chat() -> Body:
    """The very LM call that the program makes."""
    messages = dspy.ChatAdapter().format(dspy.Signature(PROGRAM), [], {"question": TEXT})
    return {"model": "small", "messages": messages}


BARE = Peer(
    "Ray Serve alone, FastAPI ingress and one replica, both throughput flags",
    "ray",
    "ray-serve",
    (f"ray[serve]=={version('ray')}", DSPY),
    lambda place: [str(place.python), str(SERVERS / "ray_serve_server.py"), str(place.port)],
    "/predict",
    HTTP_QUESTION,
    {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
)

PEERS: dict[str, Peer] = {
    "fastapi-1": fastapi("acall", 1),
    "fastapi-2": fastapi("acall", 2),
    "tutorial-2": fastapi("asyncify", 2),
    "ray-serve": BARE,
    "litellm": Peer(
        "LiteLLM proxy (one LM call, no program)",
        "litellm",
        "litellm",
        (f"litellm[proxy]=={version('litellm')}",),
        litellm_command,
        "/v1/chat/completions",
        chat(),
        {"LITELLM_LOG": "ERROR"},
        "/health/liveliness",
    ),
    "mlflow": Peer(
        "MLflow `models serve`, DSPy flavor",
        "mlflow",
        "mlflow",
        ("mlflow", DSPY),
        mlflow_command,
        "/invocations",
        {"inputs": {"question": TEXT}},
        {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"},
    ),
    "dspy-cli": Peer(
        "dspy-cli",
        "dspy-cli",
        "dspy-cli",
        ("dspy-cli", DSPY),
        dspy_cli_command,
        "/Ask",
        {"question": TEXT},
        health="/programs",
    ),
}
