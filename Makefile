# Set-up, report, test, lint. `make` prints the targets.
PYTHON ?= python3
CORES ?= $(shell nproc)
VENV := .venv
BIN := $(VENV)/bin
# torch's CPU build: 200 MB instead of several GB of CUDA. Where its index cannot be reached, pip's own settings decide;
# if they give PyPI's build, that needs the packages of requirements-cuda.lock. The lock has the hashes of both builds.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# compiling all of the packages takes longer than installing them; Python compiles what it imports
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
LOCKED := $(PIP) --no-deps --require-hashes

# Each of hundreds of processes would compile what it imports again; a third of the start of a short one.
unexport PYTHONDONTWRITEBYTECODE

# GPU=1: requirements-gpu.lock, for GPUs without a container (docs/sites/none.md). What was set up once stays of its kind.
GPU ?= $(if $(wildcard $(VENV)/.complete-gpu),1)
COMPLETE := $(VENV)/.complete$(if $(GPU),-gpu)
# of the Pythons that a lock is for: Megatron-Core in the GPU's is newer than 3.11 can have
OLDEST := $(if $(GPU),3.12,3.11)

.PHONY: help setup report test test-quick test-image test-cluster test-faults coverage lint verify accept clean distclean
help: ## show this help
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: $(COMPLETE) ## make .venv from the pinned lock; GPU=1: for GPUs without a container

define CPU_PACKAGES
@awk '/^[a-z]/ { keep = /^torch==/ } keep' requirements.lock > $(VENV)/torch.lock
@$(LOCKED) --retries 0 --timeout 10 --index-url $(TORCH_INDEX) -r $(VENV)/torch.lock 2>/dev/null \
  || $(LOCKED) -r $(VENV)/torch.lock
@case $$($(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))') in \
  *+cpu) ;; *) $(LOCKED) -r requirements-cuda.lock ;; esac
@$(LOCKED) -r requirements.lock
endef
define GPU_PACKAGES
@sh src/octavo/cluster/gpu-packages.sh $(VENV) requirements-gpu.lock
endef

$(VENV)/.complete: requirements.lock requirements-cuda.lock
$(VENV)/.complete-gpu: requirements-gpu.lock
$(COMPLETE): pyproject.toml setup.py $(wildcard src/octavo/cpu/*.[ch])
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"error: Python $(OLDEST) to 3.13 is needed, this is {v[0]}.{v[1]}: make setup PYTHON=python$(OLDEST)") if not tuple(map(int, "$(OLDEST)".split("."))) <= v <= (3, 13) else None'
	@echo "Setting up $(VENV) from requirements$(if $(GPU),-gpu).lock ..."
	@# anew where it is of the other kind
	@$(PYTHON) -m venv $(if $(wildcard $(VENV)/.complete$(if $(GPU),,-gpu)),--clear) $(VENV)
	$(if $(GPU),$(GPU_PACKAGES),$(CPU_PACKAGES))
	@$(PIP) --no-deps --no-build-isolation --editable .
	@# once for all that runs later
	@$(BIN)/python -W ignore -c 'from octavo.cpu.backend import install; install(); \
	  import octavo.training.trainer, torch._dynamo, snakemake.cli, octavo.report.figures, octavo.report.html, \
	  octavo.report.pdf, scipy.stats, matplotlib.backends.backend_pdf, matplotlib.backends.backend_svg'
	@echo "Measuring how fast this machine trains ..."
	-@$(BIN)/octavo calibrate
	@touch $@

report: setup ## train what is missing of the laptop experiment and typeset results/laptop/report.pdf
	$(BIN)/snakemake --profile workflow/profiles/local --cores $(CORES) results/laptop/report.pdf

# The quick tests run side by side, the longest files first (tests/conftest.py); beside them the image is built that
# tests on the cluster run in. Of those there is one at a time; beside them, for they mostly wait, run those that kill and
# break.
SLOW := cluster or container or faults
QUICK := --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder -m 'not ($(SLOW) or gpu_image)'
test: setup ## run all tests that this machine can run
	@$(MAKE) --no-print-directory --jobs=2 test-quick test-image
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-cluster test-faults

test-quick: setup
	$(BIN)/python -m pytest $(QUICK)

test-image: setup
	$(BIN)/python -m pytest --quiet -m 'container and not cluster' tests/cluster

test-cluster: setup
	$(BIN)/python -m pytest -m cluster tests/cluster

test-faults: setup
	$(BIN)/python -m pytest -m faults tests/faults

coverage: setup ## run the quick tests and show which lines of the package they never reach, subprocesses included
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest $(QUICK)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

lint: setup ## ruff, pyright, the order of packages, and snakefmt
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflow/rules

verify: setup ## train a sample of the laptop experiment again and compare it bit by bit
	$(BIN)/snakemake --profile workflow/profiles/local --cores $(CORES) --forcerun verify -- results/laptop/verification.json
	@$(BIN)/octavo verification results/laptop

CLUSTER ?= h100-node
IMAGE := results/images/gpu.sif
# in the image there is no git, and nothing that knows its digest
NAMED := from pathlib import Path; from octavo.cluster.image import read_image; \
  from octavo.training.provenance import commit_as_named; print(read_image(Path("."), "gpu").digest, commit_as_named())
accept: setup ## measure a GPU node, in the image where it is built, and say what fell short: make accept CLUSTER=h100-node
	@if [ -e $(IMAGE) ]; then \
	  named=$$($(BIN)/python -c '$(NAMED)') && apptainer exec --nv --env PYTHONPATH=$(CURDIR)/src \
	    --env "OCTAVO_COMMIT=$${named#* }" --env "OCTAVO_IMAGE_DIGEST=$${named%% *}" $(IMAGE) octavo accept $(CLUSTER); \
	  else $(BIN)/octavo accept $(CLUSTER); fi

clean: ## remove caches; results and the set-up stay
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* build
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Runs are paid for: nothing of them is removed before somebody has said so.
distclean: ## remove results (not results/reference), the set-up and caches: make distclean CONFIRM=1
	@echo "$(if $(filter 1,$(CONFIRM)),Removing,This removes) for good: $(VENV), .snakemake and"
	@find results/ -mindepth 1 -maxdepth 1 ! -name reference -exec du -sh {} + 2>/dev/null || true
	@test "$(CONFIRM)" = 1 || { echo "Nothing was removed. To remove it: make distclean CONFIRM=1"; exit 1; }
	@$(MAKE) --no-print-directory clean
	@rm -rf $(VENV) .snakemake
	@if [ -d results ]; then find results/ -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +; fi
