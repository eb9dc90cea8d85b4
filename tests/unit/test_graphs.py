"""Both graphs are bound from the same configuration, and refuse what the checker refuses."""

import pytest
import yaml
from test_house_rules import ROOT

from graphs import compact, standard
from serve_app.config_check import check_file, load_app_config
from serve_app.errors import ConfigError

GRAPHS = [standard, compact]


def args() -> dict:
    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["args"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_is_bound_without_a_cluster(graph) -> None:
    assert graph.build(args()) is not None


def test_the_standard_graph_has_a_deployment_for_each_part() -> None:
    models = {"Model-large", "Model-medium", "Model-small"}
    both = models | {"Ingress", "ControlPlane", "EmbeddedRedis"}
    config = load_app_config(args())
    assert set(standard.deployment_names(config)) == both | {"Cache", "Router"}
    assert set(compact.deployment_names(config)) == both


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_mistake_is_refused_in_the_checkers_words(graph, tmp_path) -> None:
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    wrong = document["applications"][0]["args"]
    wrong["default_model"] = "larg"
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(document))
    (problem,) = check_file(file)
    with pytest.raises(ConfigError) as refused:
        graph.build(wrong)
    assert problem.text in str(refused.value)
    assert "'large'" in problem.text


def test_a_deployment_that_the_graph_does_not_have_is_named(tmp_path) -> None:
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    document["applications"][0]["deployments"][0]["name"] = "ControlPlan"
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(document))
    assert any("'ControlPlane'" in problem.text for problem in check_file(file))
