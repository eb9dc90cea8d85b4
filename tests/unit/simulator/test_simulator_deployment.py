import pytest

from serve_app.errors import ConfigError
from serve_app.simulator.profile import ModelProfile

# Importing ray.serve warns from its own code; the import happens within the tests so that this covers it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_the_application_is_built_from_inline_models_or_the_default_profile():
    from serve_app.simulator.deployment import SimulatorArgs, build

    assert build(SimulatorArgs()) is not None
    assert build(SimulatorArgs(models={"m": ModelProfile(quality=0.5)})) is not None


def test_a_profile_and_models_at_once_are_refused(tmp_path):
    from serve_app.simulator.deployment import SimulatorArgs

    with pytest.raises(ValueError, match="not both"):
        SimulatorArgs(profile=tmp_path, models={"m": ModelProfile()})


def test_a_profile_that_is_not_there_is_a_configuration_error(tmp_path):
    from serve_app.simulator.deployment import SimulatorArgs, build

    with pytest.raises(ConfigError, match="cannot be read"):
        build(SimulatorArgs(profile=tmp_path / "none.yaml"))


def test_the_builder_keeps_its_annotation_so_that_ray_validates_the_arguments():
    from serve_app.simulator.deployment import SimulatorArgs, build

    assert build.__annotations__["args"] is SimulatorArgs
