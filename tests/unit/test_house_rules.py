"""Who may import whom."""

import ast
import re
import sys
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


def events(path: Path) -> list[str]:
    """What a module logs, as it is written there."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    by = r"_?log(ger)?\.(debug|info|warning|error|exception)"
    return [ast.unparse(call.args[0]).strip("'") for call in calls if re.fullmatch(by, ast.unparse(call.func))]


@pytest.mark.parametrize("path", modules("serve_app"), ids=lambda path: path.stem)
def test_what_a_line_is_about_is_a_field_and_not_part_of_the_event(path) -> None:
    assert not [event for event in events(path) if not re.fullmatch(r"[a-z_]+\.([a-z_]+|%s)", event)]


def test_nothing_unpickles_but_a_channel_whose_peer_knows_its_key() -> None:
    for path in set(modules("serve_app")) - {ROOT / "serve_app/adapters/channel.py"}:
        assert not imports(path) & {"pickle", "cloudpickle", "dill", "marshal", "shelve"}, path


ALLOWED_IN_CORE = {"serve_app", "pydantic", "pydantic_core", "orjson", *sys.stdlib_module_names} - BANNED_IN_CORE
CONTRACTS = ("messages", "reports", "errors", "config", "policy", "redis_url")
INWARD = {f"serve_app.{name}" for name in CONTRACTS}
IO_IN_CORE = {"os", "io", "socket", "subprocess", "threading", "sqlite3", "urllib", "http"}


@pytest.mark.parametrize("path", modules("serve_app.core"), ids=lambda path: path.stem)
def test_core_imports_itself_the_contracts_and_nothing_that_reaches_outside(path) -> None:
    found = imports(path)
    roots = {name.split(".")[0] for name in found}
    assert roots <= ALLOWED_IN_CORE - IO_IN_CORE
    ours = {name for name in found if name.split(".")[0] == "serve_app"}
    assert all(name in INWARD or name.startswith("serve_app.core.") for name in ours)


def imports_at_run_time(path: Path) -> set[str]:
    """What a module imports when it is imported itself: nothing that only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("name", sorted(INWARD))
def test_the_contracts_import_only_each_other(name) -> None:
    found = imports_at_run_time(ROOT / f"{name.replace('.', '/')}.py")
    assert {each for each in found if each.split(".")[0] in ("serve_app", "graphs")} <= INWARD
    assert {each.split(".")[0] for each in found} <= ALLOWED_IN_CORE


def test_imports_name_their_package_in_full() -> None:
    for package in ("serve_app", "graphs"):
        for path in modules(package):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level], path


def test_the_one_who_parses_imports_sees_those_inside_functions_and_type_checks() -> None:
    assert "serve_app.client" in imports(ROOT / "serve_app" / "__init__.py")
    assert "serve_app.policy" in imports(ROOT / "serve_app" / "reports.py")
