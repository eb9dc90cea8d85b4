"""The simulated provider as a Ray Serve application, to stand beside the one under test.

In ``serve_config.yaml``: ``import_path: serve_app.simulator.deployment:build``, ``route_prefix: /sim`` and
``args: {}``, ``args: {profile: path}`` or ``args: {models: {sim-large: {quality: 0.9}}}``.
"""

from pathlib import Path

from pydantic import Field, model_validator
from ray import serve
from ray.serve import Application
from starlette.applications import Starlette

from serve_app.config import Section
from serve_app.simulator.app import create_app
from serve_app.simulator.profile import ModelId, ModelProfile, Profile, load_profile

# No ``from __future__ import annotations`` here: Ray Serve validates ``args`` by the builder's real annotation.


class SimulatorArgs(Section):
    """``args`` of the application; with neither key the default profile is served."""

    profile: Path | None = None
    """Path of a profile."""
    models: dict[ModelId, ModelProfile] | None = Field(default=None, min_length=1)
    """The models themselves, instead of a profile."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "SimulatorArgs":
        if self.profile is not None and self.models is not None:
            raise ValueError("give a profile or models, not both")
        return self


def build(args: SimulatorArgs) -> Application:
    """The application that ``serve run`` starts.

    Raises:
        ConfigError: the profile does not fit.
    """
    profile = Profile(models=args.models) if args.models else load_profile(args.profile)

    def app() -> Starlette:
        return create_app(profile)

    configured = serve.deployment(name="Simulator", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
    return configured(serve.ingress(app)()).bind()
