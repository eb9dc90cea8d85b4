"""The name of an answer: SHA-256 over everything that may change it.

That is the program and its version, the level, the tenant, the options that steer the answer, what the configuration
says of the models that may give it, and the inputs, all as canonical typed JSON (``serve_app.core.canonical_json``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from serve_app.config import ModelConfig, ProgramConfig
from serve_app.core.canonical_json import canonical_json
from serve_app.messages import Level, Options

SCHEMA: Final = 2
"""Grows when the same call gets another key, so that old and new code never share an answer by accident."""


def cache_key(
    *,
    program: str,
    version: str,
    level: Level,
    tenant: str,
    inputs: Mapping[str, object],
    options: Options,
    fingerprint: str,
) -> str:
    """64 hex digits that only an equal call shares.

    Args:
        program: its configured name.
        version: of its code, state and adapter.
        level: what the program is for this call; a degraded answer never passes for a full one.
        tenant: who asks; answers are never shared between tenants.
        inputs: the validated inputs.
        options: of these the pin, ``max_tokens``, complexity and budget count; deadline and priority change no answer.
        fingerprint: ``level_fingerprint`` of the program at that level.

    Raises:
        InvalidInputs: an input has no canonical form; the detail names it.
    """
    (key,) = cache_keys(
        program=program,
        version=version,
        tenant=tenant,
        inputs=inputs,
        options=options,
        fingerprints={level: fingerprint},
    )
    return key


def cache_keys(
    *,
    program: str,
    version: str,
    tenant: str,
    inputs: Mapping[str, object],
    options: Options,
    fingerprints: Mapping[Level, str],
) -> tuple[str, ...]:
    """``cache_key`` at each level of ``fingerprints``, in their order, with the inputs read once."""
    wishes = [options.model, options.max_tokens, str(options.complexity), options.budget_usd]
    content = hashlib.sha256(canonical_json(inputs, "inputs"))
    keys = []
    for level, fingerprint in fingerprints.items():
        digest = content.copy()
        digest.update(canonical_json([SCHEMA, program, version, str(level), tenant, fingerprint, wishes], "options"))
        keys.append(digest.hexdigest())
    return tuple(keys)


def level_fingerprint(
    program: ProgramConfig,
    level: Level,
    models: Iterable[ModelConfig],
    *,
    default_model: str,
    pin: str | None = None,
) -> str:
    """16 hex digits that change with anything configured that an answer at ``level`` depends on.

    That is the level itself, the adapter, and every model that may answer: LM string, address, dialect, the *name* of
    its key, temperature and token limit. Prices, replicas, routing and breakers are not: they change who is asked, not
    what an answer is worth. Compute it once per program, level and pin.

    Args:
        program: the program.
        level: what it is for the call.
        models: every configured model.
        default_model: the one that answers when the level's cannot.
        pin: the one model a pinned call asks, listed or not.
    """
    config = program.levels.at(level)
    asked = {pin} if pin is not None else {*config.models, default_model}
    answering = [
        [m.name, m.lm, m.api_base, m.api_key_env, m.model_type, m.temperature, m.max_tokens]
        for m in sorted(models, key=lambda model: model.name)
        if m.name in asked
    ]
    shape = [program.program, program.adapter, config.model_dump(mode="json"), answering]
    return hashlib.sha256(canonical_json(shape, "config")).hexdigest()[:16]
