# `make run` shows OCC at work; `make test` runs every test. Both begin from nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test tests test-all check bench soak release clean

run: $(VENV)/.installed
	@$(BIN)/occ demo

# The types are checked by one process, which leaves a core to the tests.
test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j 2 check tests

# Six files at once: most of a test is waiting. A hanging test ends its process, and none takes its place to hang again.
# The modules are compiled first: the six would begin with it at the same time, and each compile all of them.
tests: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -qq --collect-only > /dev/null || true
	$(BIN)/python -m pytest -n 6 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# A test process that may store compiled modules loads them 3 times as fast the next time.
test tests: export PYTHONDONTWRITEBYTECODE =

# The same, and with every release of Claude Code that OCC supports, a browser, real proxies and a generated client.
test-all: export TEST_ALL = 1
test-all: test

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tests.style

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak 600

# make release VERSION=0.2.0: check, build, commit (unless the version is in the tree already) and tag. It publishes
# nothing; CONTRIBUTING.md has the command for that.
release: check
	@echo "$(VERSION)" | grep -Eqx '[0-9]+\.[0-9]+\.[0-9]+' || { echo "Name the version: make release VERSION=0.2.0"; exit 1; }
	@test -z "$$(git status --porcelain)" || { echo "Commit or remove your changes first; git status lists them."; exit 1; }
	@! git rev-parse -q --verify "refs/tags/v$(VERSION)" >/dev/null || { echo "v$(VERSION) is tagged already."; exit 1; }
	sed -i 's/^__version__ = .*/__version__ = "$(VERSION)"/' occ_app/__init__.py
	grep -q "^## $(VERSION) - " CHANGELOG.md || sed -i "s/^## Unreleased$$/## Unreleased\n\n## $(VERSION) - $$(date -u +%F)/" CHANGELOG.md
	rm -rf dist
	{ $(BIN)/python -m build --outdir dist . && $(BIN)/python -m twine check --strict dist/*; } \
	  || { git checkout -q -- occ_app/__init__.py CHANGELOG.md; exit 1; }
	git diff --quiet || git commit -q -m "Release $(VERSION)" occ_app/__init__.py CHANGELOG.md
	git tag -a -m "OCC $(VERSION)" "v$(VERSION)"

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "OCC needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "Python cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@ $(VENV)/.installed
