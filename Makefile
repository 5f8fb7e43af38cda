# The two commands of a newcomer, and what continuous integration runs.
#
#   make demo     set up .venv and run the demo (about five minutes on two cores)
#   make test     set up .venv and run all tests
#   make check    lint, format and types
#   make package  build sdist and wheel into dist/ and try the wheel outside of the clone
#   make docs     the documentation as a site, in site/; a link that leads nowhere fails
#   make evidence trains the main comparison again (a quarter of an hour on two cores)
#
# A plain PyPI install of torch on Linux brings CUDA along. To save the download on a machine
# without a GPU, install PyTorch's CPU build first or name its index: make demo PIP_FLAGS="..."

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN := $(VENV)/bin
# All but torch comes by uv, in a third of pip's time. uv knows neither pip's own settings nor
# PIP_FLAGS, so where it finds no way pip takes over.
REST := -c constraints.txt -e '.[dev,docs,eval,sft,plots,cluster,export,llama-cpp,sweep,examples]'

.PHONY: demo test evidence check package docs setup clean

demo: $(VENV)/.installed
	$(BIN)/patchtrain demo $(DEMO_FLAGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TEST_FLAGS)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: $(VENV)/.installed
	$(BIN)/python .ci/package.py --out dist $(PACKAGE_FLAGS)

docs: $(VENV)/.installed
	$(BIN)/zensical build --clean --strict

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "patchtrain needs Python 3.11 or later; name one: make demo PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt torch
	{ $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --quiet $(REST); } \
		|| $(BIN)/python -m pip install --quiet $(PIP_FLAGS) $(REST)
	@touch $@

# With EVIDENCE_FLAGS=--quick a minute, for function only.
evidence: $(VENV)/.installed
	$(BIN)/python benchmarks/evidence_again.py $(EVIDENCE_FLAGS)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
