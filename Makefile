# Two commands matter: `make demo` and `make test`. Each sets up all it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
RUN := .venv/bin/headrace
SLOW := e2e or spark or browser or faults
PARALLEL := .venv/bin/pytest -n 2 --durations=20
export PYTHONDONTWRITEBYTECODE :=
export HEADRACE_PROFILE ?= $(PROFILE)

.PHONY: help setup demo up down status check test test-fast golden bench images results clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install uv, the locked environment and Java 17
	@bash infra/setup/install.sh

demo: setup ## Run the whole loop, about six minutes, and write out/demo/report.html; PROFILE=services
ifeq ($(PROFILE),services)
	@bash infra/setup/redis.sh && bash infra/setup/postgres.sh && bash infra/setup/kafka.sh
	@bash infra/services.sh out/services $(RUN) demo
else
	@$(RUN) demo
endif

up: setup ## Start the stack with simulated traffic and leave it running
	@$(RUN) up --simulate

down: ## Stop the stack
	@$(RUN) down

status: ## Say what runs and how stale the line is
	@$(RUN) status

check: setup ## ruff, mypy, import-linter, known vulnerabilities and SBOM of what is locked
	@.venv/bin/ruff format --check . && .venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@bash infra/setup/audit.sh
	@bash infra/setup/sbom.sh

test-fast: setup ## Unit, contract, golden, parity and architecture tests (about two minutes)
	@bash infra/setup/redis.sh
	@bash infra/setup/prometheus.sh
	@bash infra/setup/kubectl.sh
	@$(PARALLEL) -m "not (slow or $(SLOW))"

test: test-fast ## All tests
	@bash infra/setup/browser.sh
	@bash infra/setup/kafka.sh
	@bash infra/setup/s3a.sh
	@bash infra/setup/postgres.sh
	@bash infra/setup/strace.sh
	@$(PARALLEL) -m "slow and not ($(SLOW))"
	@$(PARALLEL) -m "$(SLOW)"

golden: setup ## Write the golden files anew (compiled pipelines and protocol, OpenAPI)
	@.venv/bin/python -m pipelines.incremental_train --compile
	@.venv/bin/python -m pipelines.full_train --compile
	@.venv/bin/python -m pipelines.full_train_gpu --compile
	@.venv/bin/python -m pipelines.batch_score --compile
	@.venv/bin/python -m pipelines.write_report --compile
	@.venv/bin/python -m pipelines.backfill_features --compile
	@.venv/bin/python -m pipelines.tune --compile
	@HEADRACE_GOLDEN=write .venv/bin/pytest tests/golden

bench: ## Benchmarks with peers, which it installs; JSON in out/bench
	@bash infra/setup/install.sh bench
	@bash infra/setup/redis.sh
	@bash infra/setup/kserve.sh
	@.venv/bin/python -m bench

images: ## Build the container images by docker, podman or buildah
	@bash infra/images/build.sh

results: setup ## Renew docs/results.md from the files in out/
	@$(RUN) results

clean: ## Remove everything that was made here, the environment included
	@rm -rf out .venv
