# Headway's commands. `make demo` and `make test` need nothing set up first.
#
#   make demo    export, fleet, two devices, a new defect learned and shared; writes demo-out/report.html
#   make test    everything the tests need, then the tests
#   make lint    ruff and strict mypy
#   make soak    what takes long: power cuts, lossy disks, kills, faults of network and broker, many calls of the page
#   make bench   benchmarks (see benchmarks/README.md)
#
# Variables:
#   TORCH_INDEX_URL   where pip takes torch from. Without a GPU, the CPU wheels save about 5 GB:
#                     make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
#   PYTHON            the Python to make the environment with (3.10 or newer)
#   DEMO_ARGS         passed to `headway demo`
#   PYTEST_ARGS       passed to pytest
#   HEADWAY_SOAK_SHARE   share of the runs of `make soak`, such as 0.05, where there is little time

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
DEMO_ARGS ?= --out demo-out
# More workers than cores: a third of the tests' time is waiting for processes, brokers and browsers.
PYTEST_ARGS ?= -n 5 --dist worksteal --cov --cov-report=term:skip-covered
SOAK_FLEET := tests/test_faults.py tests/test_fleet_live.py tests/test_chunks.py tests/test_trust.py tests/test_wire.py \
	tests/test_poisoned_union.py tests/test_bad_release.py tests/test_crowd.py tests/test_soak_line.py
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint soak bench clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: $(VENV)/.demo
	@scripts/system-packages mosquitto
	$(BIN)/headway demo $(DEMO_ARGS)

test: $(VENV)/.dev
	@scripts/system-packages mosquitto chromium postgresql
	@scripts/system-packages gst-launch-1.0 gst-rtsp-server || echo "The tests that need GStreamer are skipped." >&2
	@scripts/system-packages fusermount3 || echo "The tests on a disk that forgets are skipped." >&2
	$(BIN)/python -m pytest $(PYTEST_ARGS)
# Hundreds of processes start: each would compile anew what it imports.
test: export PYTHONDONTWRITEBYTECODE =

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(VENV)/.dev
	@scripts/system-packages fusermount3 || echo "The tests on a disk that forgets are skipped." >&2
	HEADWAY_ALL_CRASHES=1 HEADWAY_API_EXAMPLES=50 $(BIN)/python -m pytest tests/test_crash_points.py tests/test_kills.py \
		tests/test_lossy_disk.py tests/test_versions.py tests/test_page_kill.py tests/test_page_interface.py \
		-n 0 --no-cov -s --timeout 3600
	HEADWAY_SOAK=1 $(BIN)/python -m pytest $(SOAK_FLEET) -n 0 --no-cov -s --timeout 3600

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage* demo-out

$(VENV)/bin/python:
	@scripts/system-packages python-venv $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# torch first where an index is named, so that the extras find it installed and leave it alone.
$(VENV)/.torch: | $(VENV)/bin/python
	$(if $(TORCH_INDEX_URL),$(PIP) install torch torchvision --index-url $(TORCH_INDEX_URL))
	@touch $@

$(VENV)/.demo: pyproject.toml scripts/version.py $(VENV)/.torch
	$(PIP) install --quiet --editable '.[demo]'
	@touch $@

# Without compiling all that torch brings: the tests import a part of it, and Python compiles that once.
$(VENV)/.dev: pyproject.toml scripts/version.py $(VENV)/.torch
	$(PIP) install --quiet --no-compile --editable '.[dev]'
	@touch $@ $(VENV)/.demo
