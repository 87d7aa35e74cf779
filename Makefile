# Everything starts from a bare machine: each target makes the environment it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SECONDS := 60

.DEFAULT_GOAL := help
.PHONY: help setup demo monitor train-demo test check generate format bench soak hostile faults dist container clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Install everything, pinned, into .venv

$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard teran/*/*/*.c teran/*/*/*/*.c)
	@echo "== installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Export, serve, search 1,000 unseen scenes, write a page
	$(BIN)/python -m examples.scenes.demo

monitor: $(READY) ## Serve under load with Prometheus beside it, and show what happens (SECONDS=60)
	$(BIN)/python -m monitoring.live --seconds $(SECONDS)

train-demo: $(READY) ## Train the demo's detector and its model again, on the CPU
	$(BIN)/python -m examples.scenes.train_detector --out build/scenes/detector
	$(BIN)/python -m examples.scenes.train --out build/scenes --detector build/scenes/detector

test: $(READY) ## Run all tests, on a real Triton server
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit
	$(BIN)/python -m pytest --ignore tests/unit

check: $(READY) ## Lint, formatting, strict types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

generate: $(READY) ## Write what is made from other files: the synchronous client, the commands' page, the dashboard
	$(BIN)/python -m tools.generate_sync
	$(BIN)/python -m tools.generate_commands
	$(BIN)/python -m monitoring.dashboard

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure latency of the full-size model, every engine and precision
	$(BIN)/python -m benchmarks.latency

soak: $(READY) ## Half an hour of mixed traffic on the demo's model: does anything grow? (SECONDS=1800)
	$(BIN)/teran export examples/scenes/model build/demo/repository
	$(BIN)/python -m benchmarks.soak --repository build/demo/repository --seconds $(if $(filter command% environment,$(origin SECONDS)),$(SECONDS),1800)

hostile: $(READY) ## Ten thousand generated requests that nobody would send by mistake
	HOSTILE_REQUESTS=10000 HOSTILE_RESULT=benchmarks/results/hostile.json $(BIN)/python -m pytest -s --timeout 1800 tests/server/test_hostile.py tests/server/test_hostile_http.py

faults: $(READY) ## Kills, losses of power and damage at many more moments and places than the tests try
	TERAN_TEST_KILLS=50 $(BIN)/python -m pytest --timeout 1800 tests/faults tests/unit/gallery/embedded/test_damage.py

dist: $(READY) ## Build wheel and source distribution, and prove them in empty environments
	$(BIN)/python -m tools.dist

container: $(READY) ## Build the images cpu and gpu-rtx with buildah and start them (root; see container/check.sh)
	container/check.sh

clean: ## Remove what was built, but not the environment
	rm -rf build dist
