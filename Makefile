# `make run` shows the main job, `make test` runs every check. Both set themselves up: all they need is
# git, make and Python >= 3.11 (and, for the tests, a package index).
#
#   make run                  serve a new disk over NBD and back it up while it is written
#   make run DISK=disk.qcow2  the same on a disk of yours, through an overlay: it is never written
#   make run STAY=1           leave the daemon up and print how to connect
#
# The environment is made with PYTHON, if that is given.

SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ENVIRONMENT := $(PYTHON) tools/environment.py $(if $(filter file,$(origin PYTHON)),--choose) $(VENV)
MYPY_CACHE_DIR ?= .mypy_cache
export MYPY_CACHE_DIR

.PHONY: compiled run test lint format type docs generate bench soak clean

run:
	@$(ENVIRONMENT)
	@$(BIN)/python -m qobra.cli.main demo $(if $(DISK),--disk '$(DISK)') $(if $(STAY),--stay)

# What fails is run once more by itself, and has to pass then: many tests start programs, and on a machine that is
# busy with the others one of them may come too late.
test: lint type compiled
	$(BIN)/pytest -n auto --dist worksteal $(PYTEST_ARGS) || { [ $$? = 1 ] && $(BIN)/pytest --last-failed --last-failed-no-failures none; }

# The compiled forms of the hottest loops, for the environment's Python; what is up to date is not compiled again.
# Without a C compiler or Python's headers the pure ones serve.
compiled: $(VENV)/.test
	@$(BIN)/python setup.py --quiet build_ext --inplace >/dev/null 2>&1 || \
		echo 'no compiled forms: the pure-Python ones serve'

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

type: $(VENV)/.test
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict --quiet

# The typed models and the client's methods, from the schema.
generate: $(VENV)/.test
	$(BIN)/python -m qobra.qapi.generate
	$(BIN)/python -m qobra.client.generate
	$(BIN)/python -m qobra.command._generate

# Ratios to QEMU, interleaved in one run; each script takes options of its own, see its --help.
bench: $(VENV)/.test compiled
	@$(BIN)/python -m bench

# Random operations, crashes and concurrency at length: SCALE times what `make test` does of them, which takes hours.
# The stress test of jobs makes RUNS runs of each kind, from SEED on. A part: PYTEST_ARGS='-k kill' or a path.
SCALE ?= 50
RUNS ?= $(shell echo $$((5 * $(SCALE))))
SEED ?= 0
soak: $(VENV)/.test compiled
	QOBRA_SOAK=$(SCALE) QOBRA_STRESS_RUNS=$(RUNS) QOBRA_STRESS_SEED=$(SEED) $(BIN)/pytest -n auto -m soak --timeout 3600 $(PYTEST_ARGS)

clean:
	rm -rf src/qobra/native/*.so src/qobra/native/.built* site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests bench tools -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.test $(VENV)/.docs: $(VENV)/.%: pyproject.toml tools/environment.py
	@$(ENVIRONMENT) $*
	@touch $@
