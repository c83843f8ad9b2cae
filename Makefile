# Two commands matter: `make study` and `make test`. Each installs what it needs into .venv, once.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help study lab test lint bench pretrained publish clean

PROFILE ?= laptop
RUN ?= runs/latest
COHORT ?= phantom
ARGS ?=
# The first Python that will do: 3.11 or 3.12, able to make a virtual environment.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# JupyterLab fetches no news, no updates and no list of extensions: it works alike without a network.
QUIET := --LabApp.news_url=None --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.extension_manager=readonly
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet --constraint requirements.lock

help: ## list these commands
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

study: .venv/installed ## install, then run the whole study (PROFILE=laptop RUN=runs/latest COHORT=phantom)
	@$(BIN)/python -m oasis_lib study --profile "$(PROFILE)" --run "$(RUN)" --cohort "$(COHORT)" $(ARGS)

lab: .venv/installed ## open JupyterLab on the driver
	@$(BIN)/jupyter lab driver.ipynb $(QUIET)

test: .venv/installed-test ## lint, then run all tests, the smoke study included
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder $(ARGS)

lint: .venv/installed-test ## put imports and layout in order (ruff)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: .venv/installed ## measure speed and quality; see benchmarks/
	@for f in benchmarks/*.py; do echo "$$f"; $(BIN)/python "$$f" || exit 1; done

pretrained: .venv/installed ## train data/pretrained anew (110 minutes on one core; one that was stopped goes on)
	@$(BIN)/python benchmarks/pretrained.py $(ARGS)

publish: .venv/installed ## make docs/study and the first picture of README from RUN, a finished laptop run
	@$(BIN)/python images/publish.py "$(RUN)"

clean: ## remove the environment and caches; runs and data stay
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info build

# The stamp is the last thing made: an installation that was cut short goes on.
.venv/installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or 3.12 with venv was found. Install one (Debian: python3.11-venv; conda: environment.yml), or say make PYTHON=/path/to/python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing: torch first, then the rest (some minutes, once)"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@echo "installing what tests need"
	@$(PIP) --editable '.[test]'
	@touch $@
