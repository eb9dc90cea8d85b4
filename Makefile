# Everything a newcomer needs is `make run` and `make test`; both create .venv from requirements.lock first.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
CONFIG ?= serve_config.yaml

.DEFAULT_GOAL := help
.PHONY: help run test test-unit check lint types bench docs manifests lock clean

help: ## Show what there is to do
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Switchyard needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 1; }
	@echo "Installing into .venv (a minute or two, once) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import dspy, ray.serve, serve_app' && touch $@

run: $(READY) ## Serve serve_config.yaml on this machine (Ctrl-C ends it)
	@$(BIN)/switchyard run $(CONFIG)

test: test-unit $(READY) ## Run every test
	@$(BIN)/python -m pytest tests/integration tests/console

test-unit: $(READY) ## Run the tests that need no Ray, on every core
	@$(BIN)/python -m pytest tests/unit -n auto

check: lint types test ## What CI runs: lint, types, tests

lint: $(READY) ## Check style and imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY) ## Check types
	@$(BIN)/mypy

bench: $(READY) ## Measure, and write benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.run

docs: $(READY) ## Write docs/configuration.md from the models of serve_config.yaml
	@$(BIN)/python -m serve_app.config_reference > docs/.new && mv docs/.new docs/configuration.md

manifests: $(READY) ## Write what cluster/ holds of serve_config.yaml and of the alerts
	@$(BIN)/switchyard kuberay render serve_config.yaml -o cluster/kuberay/dev/serve-config-v2.yaml
	@$(BIN)/switchyard kuberay render cluster/kuberay/prod/serve_config.yaml -o cluster/kuberay/prod/serve-config-v2.yaml
	@$(BIN)/switchyard kuberay render --config-only serve_config.yaml -o cluster/serve_config.yaml
	@{ echo '# Made from prometheus/alerts.yml by `make manifests`.'; printf '%s\n' 'apiVersion: monitoring.coreos.com/v1' \
		'kind: PrometheusRule' 'metadata: {name: switchyard, labels: {app.kubernetes.io/part-of: switchyard}}' 'spec:'; \
		sed -e '/^#/d' -e 's/^\(.\)/  \1/' cluster/monitoring/prometheus/alerts.yml; } > cluster/monitoring/prometheus-rule.yaml

lock: ## Pin the newest versions that pyproject.toml allows (needs uv)
	@uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
		--extra embedded --extra otel --extra dev pyproject.toml -o requirements.lock

clean: ## Remove what the other commands made
	@rm -rf .venv .switchyard .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
