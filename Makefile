# make demo    the whole system on this machine, with a fake central cloud and 20 fake subclouds
# make check    lint, and the tests that need no server, in less than three minutes: for every change
# make test    every check and every test but the slow ones of `make faults`
# make soak    MINUTES=20 of misfortunes over a whole dcsync, then calm and a verdict; SEED=... for the same dice
# make bench   the next three: bench-sync, bench-state, bench-audit
# make bench-sync    what an initial sync costs
# make bench-state   how much the state service carries
# make bench-audit   what it costs to keep 1,000 subclouds in line, and how soon a central change is everywhere
# make sbom    the bill of materials of a deployment (CycloneDX), as sbom.json
# make constraints    the pins with hashes anew, after a change of dependencies; needs uv
# All install what they need into .venv, once. PYTHON=... chooses the Python, SUBCLOUDS=... the size of the demo.

SHELL := /bin/bash
PYTHON ?= python3
SUBCLOUDS ?= 20
MINUTES ?= 20
CORES := $(shell getconf _NPROCESSORS_ONLN)
JOBS ?= $(shell echo $$(( $(CORES) < 4 ? $(CORES) : 4 )))

VENV := .venv
BIN := $(VENV)/bin
# An environment knows its own place: in a moved or copied checkout it is made anew.
STAMP := $(VENV)/installed-in-$(shell echo "$(CURDIR)" | cksum | cut -d ' ' -f 1)
# By file: xdist 3.8 under pytest 9.2 ignores its own groups, and a module's servers are to be started once.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.PHONY: venv demo check test lint faults sbom constraints soak bench bench-sync bench-state bench-audit clean
.DELETE_ON_ERROR:

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt tools/make_venv.py
	@echo "installing dcsync and what it needs into $(VENV)"
	@if compgen -G "$(VENV)/installed-in-*" > /dev/null && [ ! -e $@ ]; then rm -rf $(VENV); fi
	@$(PYTHON) tools/make_venv.py $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m dcsync.cli demo --subclouds $(SUBCLOUDS)

lint: $(STAMP)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m deptry .
	$(BIN)/python -m deptry bench docs tests tools --exclude tests/real_cloud/ --ignore DEP002,DEP004

# Of the contract suites only the fakes: the real adapters need their servers.
check: lint
	$(PYTEST) -m "not servers" tests/unit tests/contract

test: lint
	$(BIN)/python -m tests.real_cloud.environment
	$(PYTEST) -m "not faults" --cov --cov-report=term

faults: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fuzz]' \
		|| echo "atheris cannot be installed for this Python: its test is skipped"
	$(BIN)/python -m pytest -n 1 -m faults tests/faults

soak: $(STAMP)
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: bench-sync bench-state bench-audit

bench-sync: $(STAMP)
	@$(BIN)/python -m bench.sync

bench-state: $(STAMP)
	@$(BIN)/python -m bench.state

bench-audit: $(STAMP)
	@$(BIN)/python -m bench.audit

sbom: $(STAMP)
	@$(BIN)/python tools/make_sbom.py > sbom.json

# The address of the package index is in none of them, so that hashes alone decide what is installed.
COMPILE := uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11
constraints:
	$(COMPILE) pyproject.toml -c constraints.txt > constraints-runtime.new
	$(COMPILE) deploy/build-requirements.in > constraints-build.new
	for name in runtime build; do \
		{ grep '^#' constraints-$$name.txt; cat constraints-$$name.new; } > constraints-$$name.both \
		&& mv constraints-$$name.both constraints-$$name.txt && rm constraints-$$name.new; done

clean:
	rm -rf $(VENV) .keystone-venv .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf build dist sbom.json *.egg-info celerybeat-schedule*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
