# `make help` lists what there is. Everything runs in .venv, which is made when it is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2
# waiting threads of torch that spin slow every other process down
export OMP_WAIT_POLICY := PASSIVE
export KMP_BLOCKTIME := 0

.PHONY: help install demo demo-avse demo-asr demo-tts pipelines test test-unit test-vllm torture lint bench bench-gpu clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' Makefile | while read -r name text; do printf '  make %-11s %s\n' "$$name" "$$text"; done

install: $(STAMP)  ## make .venv and install (uv where it is there, else pip); done by the others when needed

$(STAMP): pyproject.toml .constraints.txt .ci/install
	@start=$$SECONDS; PYTHON="$(PYTHON)" .ci/install && touch $@ && echo "installed in $$((SECONDS - start)) s"

demo: $(STAMP)  ## the main job from audio to verdict, 5 minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

demo-avse: $(STAMP)  ## audio-visual enhancement, PPO and the audio LLM's reward, from audio to verdict, 7 minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo-avse.sh

demo-asr: $(STAMP)  ## recognition, GRPO with rule rewards, from audio to verdict, 4 minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo-asr.sh

demo-tts: $(STAMP)  ## synthesis, GRPO + DiffRO on a codec language model, from texts to verdict, 4 minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo-tts.sh

pipelines: $(STAMP)  ## one-liners with find, xargs, jq and sed, two minutes on two cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/pipelines.sh

test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## all tests that can run here (real recordings: RLSPEECH_REALDATA=FOLDER, real models: RLSPEECH_REALMODELS=FOLDER)
	@start=$$SECONDS; $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 10 || { echo "failed: see the FAILED lines above; one alone: $(BIN)/pytest PATH::NAME"; exit 1; }; \
	echo "passed in $$((SECONDS - start)) s; look at: the summary and the slowest tests above. Next: make demo, make lint"

test-unit: export OMP_NUM_THREADS := 1
test-unit: $(STAMP)  ## the quick tests, about two minutes on two cores
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow and not realdata and not realmodels and not gpu and not net'

test-vllm: export OMP_NUM_THREADS := 1
test-vllm: .venv-vllm/.installed  ## tests of rollouts in vLLM, in an environment of their own (.venv-vllm: some minutes, 4 GB)
	@.venv-vllm/bin/python -m pytest -m vllm

.venv-vllm/.installed: pyproject.toml .constraints.txt .ci/install
	@VENV=.venv-vllm VLLM=1 PYTHON="$(PYTHON)" .ci/install && touch $@

torture: export OMP_NUM_THREADS := 1
torture: $(STAMP)  ## spoiled inputs, kills, signals, disks, rival processes; 15 minutes on two cores (SHARE=0.1: a tenth, SEED=1: others)
	@PYTHONPATH=tests/tiny $(BIN)/python tests/torture/run.py --workers $(WORKERS) --share $(or $(SHARE),1) --seed $(or $(SEED),0)

lint: $(STAMP)  ## ruff (layout and rules), and mypy (strict on types, config, settings, run, data and the reward interface)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check . && $(BIN)/mypy

bench: $(STAMP)  ## ours, what users would run otherwise, and the machine's own ceiling, as ratios; four minutes on two quiet cores
	@$(BIN)/python examples/bench.py

bench-gpu: $(STAMP)  ## the same on a GPU
	@$(BIN)/python examples/bench.py --device cuda

clean:  ## remove build products, caches and runs/
	@rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
