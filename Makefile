# make demo | test | check need nothing but python >= 3.11 and make: each makes .venv first.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info)' >/dev/null 2>&1 \
	&& { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
STAMP := $(VENV)/.installed
# Two test processes with one thread each: many tests wait for processes of their own, so on 2 cores that half of the
# suite took 212 s against 534 s in one process with two threads; the other half takes as long either way.
JOBS ?= 2
TESTS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test check mutants fuzz format docs site site-live clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP) ## make .venv and install the package with the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import pip' >/dev/null 2>&1 || { \
		if [ -z "$(PYTHON)" ]; then \
			echo "error: no Python 3.11 or newer that can make a virtual environment was found." >&2; \
			echo "Debian, Ubuntu: apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/python3 ..." >&2; \
			exit 1; fi; \
		echo "making $(VENV) with $$($(PYTHON) --version)"; \
		rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing (the first time this takes minutes: torch is large)"
	@$(RUN) pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install ## the whole job on 2 CPU cores: pictures, videos, then a world model that plans (15 to 21 minutes)
	@$(RUN) jepa demo --out runs/demo

test: install ## the test suite; TESTS='tests/data -k order' picks some
	@OMP_NUM_THREADS=1 $(RUN) pytest -q -n $(JOBS) $(TESTS)

check: install ## format, lint, types
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy

mutants: install ## mistakes that the suite must notice, one by one; ONLY=rope picks some, FRESH=1 forgets what was done
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py $(if $(ONLY),--only '$(ONLY)') $(if $(FRESH),--fresh)

fuzz: install ## inputs grown by the lines they reach; TARGET=tar picks one reader, SECONDS=600 for each (60)
	@$(RUN) tests.hostile.fuzz $(TARGET) --seconds $(or $(SECONDS),60)

format: install ## put the format right
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

docs: install ## write docs/reference anew from the dataclasses and the heads of shipped files
	@$(BIN)/python docs/reference/generate.py
	@$(BIN)/python docs/reference/cards.py

site: install ## the guide as a site, in build/site; opens from the disk
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "open build/site/index.html"

site-live: install ## the same on loopback, rendered again at every change
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

clean: ## remove what can be made again; runs/ and data/ stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -exec rm -rf {} +
