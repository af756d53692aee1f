# make demo and make test work in a bare clone: each makes .venv when it is missing and installs what constraints.txt pins.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-engines lint bench docs clean

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: .venv/.ready
	$(BIN)/research experiment=quickstart

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: .venv/.ready lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# really starts joblib, submitit, Slurm, Ray and torchrun; needs root, for Slurm's daemons and a network namespace for Ray
ENGINE_PACKAGES := slurm-wlm munge iproute2 util-linux
.venv/.engines: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,joblib,slurm,ray]"
	touch $@

test-engines: .venv/.engines
	@test "$$(id -u)" = 0 || { echo "test-engines: must run as root (a container will do): Slurm's daemons and Ray's network namespace need it" >&2; exit 1; }
	@dpkg --status $(ENGINE_PACKAGES) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(ENGINE_PACKAGES) >/dev/null; } \
		|| { echo "test-engines: not installed, and apt-get could not install: $(ENGINE_PACKAGES)" >&2; exit 1; }
	$(BIN)/python -m pytest -m engines tests/engines

bench: .venv/.ready
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/sweep.py

# the site, from docs/ and conf/, in build/docs: open build/docs/index.html
.venv/.docs: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv outputs build dist *.egg-info
