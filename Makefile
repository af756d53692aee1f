# make demo and make test work in a bare clone: each makes .venv when it is missing and installs what constraints.txt pins.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lint bench clean

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

test: .venv/.ready lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

bench: .venv/.ready
	$(BIN)/python benchmarks/loop.py

clean:
	rm -rf .venv outputs build dist *.egg-info
