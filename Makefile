# `make` alone lists the targets. Needs make and one Python >= 3.11 with venv and pip; brings the rest itself.

JOBS ?= 2
OTHERS ?= full
SEEDS ?= 1000
SECONDS ?= 600
UPGRADE ?=

# The interpreter of .venv: the oldest supported one, because what works there works everywhere.
MAIN = $$(sh tools/pythons.sh | head -n 1)
BIN = .venv/bin
UV = .venv-uv/bin/uv
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade)
# Whether the environment in the shell's $venv has the shell's $version.
IS_VERSION = $$venv/bin/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$$version')" 2>/dev/null
PYTEST = bin/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0
QUICK = -m "not server and not slow"

export UV_PYTHON_DOWNLOADS = never
export UV_SYSTEM_CERTS = 1
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

.PHONY: help setup demo test suite lint lock servers soak jitter chaos bench clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1#/p' Makefile | awk -F '#' '{ printf "%-16s %s\n", $$1, $$2 }'
	@echo
	@echo "  JOBS=$(JOBS)           test processes at a time"
	@echo "  OTHERS=$(OTHERS)      tests on all interpreters but the first: full, or quick (no servers, nothing slow)"
	@echo "  PYTHON=          the only interpreter to use"
	@echo "  ARGS=            more arguments for pytest"
	@echo "  SEEDS=$(SEEDS)       how many seeds a soak tries"
	@echo "  SECONDS=$(SECONDS)      how long chaos lasts, and long simulations in a soak"
	@echo "  UPGRADE=1        lock the newest versions; otherwise those locked stay while they fit"

setup: .venv/.done ## the development environment, in .venv

demo: setup ## a cluster of four processes that loses its leader and goes on
	$(BIN)/lbc demo

test: setup servers ## all tests, on every CPython 3.11 to 3.14 of this machine
	@suite=full; failed=; summary=; versions=$$(sh tools/pythons.sh); \
	test -n "$$versions" || { echo "No CPython 3.11 to 3.14 was found."; exit 1; }; \
	for version in $$versions; do \
		echo; echo "##### CPython $$version: $$suite suite"; \
		if $(MAKE) --no-print-directory suite VERSION=$$version SUITE=$$suite; \
		then result=passed; else result=FAILED; failed=1; fi; \
		summary="$$summary\n##### CPython $$version: $$suite suite $$result"; \
		suite=$(OTHERS); \
	done; \
	printf "$$summary\n"; test -z "$$failed"

# The tests on one interpreter: make suite VERSION=3.12 SUITE=quick
VERSION ?= $(MAIN)
SUITE ?= full
suite:
	@case $(SUITE) in full|quick) ;; *) echo "full or quick, not $(SUITE)"; exit 2 ;; esac
	@version=$(VERSION); venv=.venv-$$version; \
	if [ "$$version" = "$(MAIN)" ]; then venv=.venv; fi; \
	$(IS_VERSION) || rm -f $$venv/.done; \
	$(MAKE) --no-print-directory $$venv/.done && \
	$$venv/$(PYTEST) $(if $(filter quick,$(SUITE)),$(QUICK)) $(ARGS)

lint: setup ## style, types, and that imports only run downwards
	@failed=; for tool in "ruff check ." "ruff format --check ." mypy lint-imports; do \
		echo "##### $$tool"; $(BIN)/$$tool || failed=1; \
	done; test -z "$$failed"

lock: .venv-uv/.done ## write requirements/ anew from pyproject.toml
	$(COMPILE) pyproject.toml --group dev --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --constraints requirements/dev.txt --output-file requirements/runtime.txt
	echo uv | $(COMPILE) - --output-file requirements/bootstrap.txt

# What cannot be installed here, the tests that need it report; in CI they fail.
servers: setup ## install the object stores that tests run against
	-$(BIN)/python -m tests.servers install

soak: setup servers ## property tests and simulations, for long
	LBC_SEEDS=$(SEEDS) .venv/$(PYTEST) -o faulthandler_timeout=7200 $(ARGS)
	$(BIN)/python -m tests.simulation --count $(SEEDS)
	$(BIN)/python -m tests.simulation --long --seconds $(SECONDS)

jitter: setup servers ## all tests with random delays in threads and event loops: what depends on luck shows itself
	PYTHONPATH=$(CURDIR)/tests/jitter .venv/$(PYTEST) --ignore tests/simulation --ignore tests/chaos \
		-o faulthandler_timeout=900 $(ARGS)

chaos: setup servers ## five nodes on Ceph that are killed, frozen and cut off at random: what CI does at night
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) $(ARGS)

bench: setup ## all benchmarks
	set -e; for file in benchmarks/[!_]*.py; do echo "##### $$file"; $(BIN)/python $$file; done

clean: ## remove all that was made here, the environments too
	rm -rf .venv .venv-* .servers .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	rm -f .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. pip installs uv, uv installs the rest; every file is checked against the hashes in requirements/.

.venv-uv/.done: requirements/bootstrap.txt tools/pythons.sh
	@python=$$(sh tools/pythons.sh bootstrap); \
	if [ -z "$$python" ]; then \
		echo "No CPython 3.11 to 3.14 with sqlite3, ssl, venv and ensurepip was found."; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python"; \
		exit 1; \
	fi; \
	"$$python" -m venv --clear .venv-uv
	.venv-uv/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/bootstrap.txt
	@touch $@

define environment
@venv=$(@D); version=$${venv#.venv}; version=$${version#-}; version=$${version:-$(MAIN)}; \
$(IS_VERSION) || $(UV) venv --quiet --clear --python "$$(sh tools/pythons.sh $$version)" $$venv
$(UV) pip sync --quiet --python $(@D) --require-hashes requirements/dev.txt
$(UV) pip install --quiet --python $(@D) --no-deps --no-build-isolation --editable .
@touch $@
endef

.venv/.done: .venv-uv/.done requirements/dev.txt pyproject.toml
	$(environment)

.venv-3.%/.done: .venv-uv/.done requirements/dev.txt pyproject.toml
	$(environment)
