# Every target makes the environment it needs first; the second time that takes no time. `make` alone shows the list.

PLATFORM ?= cpu
MODEL ?= nano
VENV := $(if $(filter cpu,$(PLATFORM)),.venv,.venv-$(PLATFORM))
PYTHON ?= $(shell for p in python3.11 python3 python; do $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
INSTALLED := $(VENV)/installed
TRACKERS := $(VENV)/trackers
SOURCES := $(VENV)/sources
RUN := $(VENV)/bin/python -m
# Much of a test is waiting for processes that start. The tests of a file share what they start.
TWO := --numprocesses 2 --dist loadfile
TRACKED := $(patsubst %,tests/unit/test_%.py,mlflow_store mlflow_traces wandb_runs inspect_logs)
SOURCED := $(patsubst %,tests/unit/test_%.py,s3 function_calls)
# Each of those would compile burnish again where the caller's environment forbids bytecode to be kept; `make clean` removes it.
test fuzz gputest faults bench: export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test gputest browser trackers sources fuzz faults bench lint docs proto install clean

help:  ## show this list
	@echo "make TARGET [MODEL=nano|smollm2] [PLATFORM=cpu|gpu] [PYTHON=/path/to/python3.11]"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(INSTALLED)  ## train, evaluate and serve a small policy, in minutes (MODEL=smollm2: a real pretrained one)
	$(VENV)/bin/burnish demo --model $(MODEL) --platform $(PLATFORM)

test: lint browser trackers sources  ## the checks, then the unit, fuzz and integration tests
	$(RUN) pytest tests/unit $(TWO)
	PYTHONPATH=$(abspath $(TRACKERS)) $(RUN) pytest $(TRACKED) $(TWO)
	PYTHONPATH=$(abspath $(SOURCES)) $(RUN) pytest $(SOURCED) $(TWO)
	$(RUN) pytest tests/fuzz $(TWO)
	$(RUN) pytest tests/integration -m "not slow" $(TWO)

browser: $(INSTALLED)  ## Debian's Chromium and axe-core for the tests of pages, which are skipped without them
	@$(RUN) pip install -q --no-deps axe-playwright-python==0.1.8 || echo "axe-core could not be installed: its test of the pages is skipped" >&2
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || echo "no Chromium here and none could be installed: the tests in a browser are skipped; apt-get install chromium" >&2

trackers: $(TRACKERS)/installed  ## MLflow, W&B and Inspect beside the rest, for their tests, which are skipped without them

sources: $(SOURCES)/installed  ## s3fs, a local S3 and bfcl-eval beside the rest, for their tests, which are skipped without them

# In folders that only their tests see: some of what they ask for is older than what .venv has.
$(TRACKERS)/installed $(SOURCES)/installed: $(VENV)/%/installed: constraints/%.txt $(INSTALLED)
	@rm -rf $(@D) && mkdir -p $(@D)
	@{ $(RUN) pip install -q --disable-pip-version-check --no-deps --target $(@D) -r $< && touch $@; } || { rm -rf $(@D); echo "not all of $< could be installed: the tests that need it are skipped" >&2; }

gputest: $(INSTALLED)  ## the learner on CUDA against the learner on a CPU (needs a GPU)
	$(RUN) pytest tests/gpu -m gpu

fuzz: $(INSTALLED)  ## 10,000 made-up inputs for everything that reads what others wrote (minutes)
	$(RUN) pytest tests/fuzz -m fuzz --hypothesis-profile=fuzz --timeout 3600

faults: $(INSTALLED)  ## every fault at every place of a run under way, and docs/faults.md of what became of it (an hour)
	$(RUN) pytest tests/integration/test_fault_matrix.py -m slow --timeout 14400

bench: $(INSTALLED)  ## the benchmarks and the long learning runs behind the committed tables (hours)
	$(RUN) pytest tests benchmarks -m slow --timeout 14400

lint: $(INSTALLED)  ## ruff, mypy --strict and the one-way imports between rooms
	$(VENV)/bin/python tests/lint.py

docs: $(INSTALLED)  ## write the reference of the recipe, docs/recipe.md, again from the code
	$(VENV)/bin/burnish recipe > docs/recipe.md.new && mv docs/recipe.md.new docs/recipe.md

proto: $(INSTALLED)  ## generate the Python stubs of proto/burnish/v1 again, and check that the contract still holds
	$(VENV)/bin/python proto/generate.py
	$(VENV)/bin/python proto/check_breaking.py

install: $(INSTALLED)  ## only make the environment (about 5 GB)

$(INSTALLED): pyproject.toml constraints/$(PLATFORM).txt constraints/install.py
	@test -n "$(PYTHON)" || { echo "burnish needs Python 3.11 and finds none: install it (python3.11 with its venv module), or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) constraints/install.py $(PLATFORM) $(VENV)
	@touch $@

clean:  ## remove the environment and every cache; runs/ and models/ stay
	rm -rf .venv .venv-gpu build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
