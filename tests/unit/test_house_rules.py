"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED_IN_CORE = {
    "ray",
    "dspy",
    "fastapi",
    "redis",
    "httpx",
    "aiohttp",
    "prometheus_client",
    "psutil",
    "logging",
    "asyncio",
}
ORDER = ["serve_app.core", "serve_app.adapters", "serve_app.deployments", "graphs"]


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package.replace(".", "/")).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules("serve_app.core"), ids=lambda path: path.stem)
def test_core_is_pure(path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & BANNED_IN_CORE


@pytest.mark.parametrize(("lower", "higher"), [(low, high) for at, low in enumerate(ORDER) for high in ORDER[at + 1 :]])
def test_dependencies_point_one_way(lower, higher) -> None:
    for path in modules(lower):
        assert not [name for name in imports(path) if name == higher or name.startswith(f"{higher}.")], path


def test_nothing_in_serve_app_imports_the_graphs() -> None:
    for path in modules("serve_app"):
        assert not [name for name in imports(path) if name.split(".")[0] == "graphs"], path


def test_nothing_unpickles() -> None:
    for path in modules("serve_app"):
        assert not imports(path) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path
