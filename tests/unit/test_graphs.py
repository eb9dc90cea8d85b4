"""Both graphs are bound from the same configuration, and refuse what the checker refuses."""

import pytest
import yaml
from ray.serve import Application
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


def bound(graph, **changes) -> dict:
    """Every deployment that the graph binds, by name."""
    found: dict = {}

    def visit(node) -> None:
        if isinstance(node, Application):
            deployment = node._bound_deployment
            if deployment.name not in found:
                found[deployment.name] = deployment
                visit(list(deployment.init_args))
        elif isinstance(node, dict):
            visit(list(node.values()))
        elif isinstance(node, list):
            for item in node:
                visit(item)

    visit(graph.build(args() | changes))
    return found


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("redis_url", ["embedded", None, "redis://h:1"])
def test_the_names_told_are_the_names_bound(graph, redis_url) -> None:
    changes = {"cache": {"redis_url": redis_url}}
    config = load_app_config(args() | changes)
    assert set(graph.deployment_names(config)) == set(bound(graph, **changes))
    assert len(graph.deployment_names(config)) == len(set(graph.deployment_names(config)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_replicas_wait_on_the_network_and_ask_for_little_cpu(graph) -> None:
    for name, deployment in bound(graph).items():
        assert deployment.ray_actor_options["num_cpus"] <= 0.1, name


@pytest.mark.parametrize("graph", GRAPHS)
def test_rays_own_bounds_lie_above_ours_so_that_every_refusal_is_ours(graph) -> None:
    limits = {"max_queued_requests": 300}
    deployments = bound(graph, limits=limits)
    assert deployments["Ingress"].max_ongoing_requests > 300
    for name, deployment in deployments.items():
        assert deployment.max_queued_requests == -1, name
        assert deployment.max_ongoing_requests >= 300, name


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_dead_replica_is_missed_within_two_seconds_and_a_busy_one_is_not_taken_for_dead(graph) -> None:
    for name, deployment in bound(graph).items():
        options = deployment._deployment_config
        assert options.health_check_period_s == 2, name
        assert options.health_check_timeout_s >= 30, name


@pytest.mark.parametrize("graph", GRAPHS)
def test_there_is_one_control_plane_also_during_an_update(graph) -> None:
    for name in ("ControlPlane", "EmbeddedRedis"):
        deployment = bound(graph)[name]
        assert deployment.num_replicas == 1
        assert deployment._deployment_config.max_surge_percent == 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_model_has_the_replicas_that_its_configuration_wants(graph) -> None:
    models = args()["models"]
    models[0]["replicas"] = {"min": 2, "max": 5, "target_queue_depth": 3}
    models[1]["replicas"] = {"min": 3, "max": 3}
    deployments = bound(graph, models=models)
    scaled = deployments["Model-large"]._deployment_config.autoscaling_config
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (2, 5, 3)
    assert deployments["Model-medium"].num_replicas == 3
    assert deployments["Model-small"].num_replicas == 1


def test_in_the_compact_graph_the_ingress_holds_every_handle_itself() -> None:
    ingress = bound(compact)["Ingress"]
    *_, handles = ingress.init_args
    assert handles.keys() == {"Model-large", "Model-medium", "Model-small", "EmbeddedRedis"}


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_part_that_holds_calls_is_given_the_time_of_the_longest_to_end(graph) -> None:
    found = bound(graph, limits={"max_deadline_s": 1234})
    times = {name: each._deployment_config.graceful_shutdown_timeout_s for name, each in found.items()}
    without_calls = {"ControlPlane", "EmbeddedRedis"}
    assert {name for name, seconds in times.items() if seconds < 1234} == without_calls
