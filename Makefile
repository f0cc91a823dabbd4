# Short names of the commands of `cmlab`, and the checks. Each sets up what it needs by itself, once.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 5000
TORCH ?= 2.11.0
# The programs that DVC starts find the environment's python first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: repro
repro: $(VENV)/.pipeline ## the whole pipeline: data, training, evaluation, tables, report; JOBS=n trains n runs at a time (default: what the cores carry), REPLICATES=n each from n seeds, RUNS=edm,ect these alone
	@"$(BIN)/cmlab" repro $(if $(JOBS),--jobs "$(JOBS)") $(if $(REPLICATES),--replicates "$(REPLICATES)") $(if $(RUNS),--runs "$(RUNS)")

.PHONY: use
use: $(VENV)/.pipeline ## make a workload the active one: make use WORKLOAD=digits
	@"$(BIN)/cmlab" use "$(WORKLOAD)"

.PHONY: plan
plan: $(VENV)/.pipeline ## what a workload takes, before any compute: make plan WORKLOAD=cifar10 GPU=h100 GPUS=8 PRICE=2.5
	@"$(BIN)/cmlab" plan "$(WORKLOAD)" $(if $(GPU),--gpu "$(GPU)") $(if $(GPUS),--gpus "$(GPUS)") \
		$(if $(PRICE),--price "$(PRICE)") $(if $(EFFICIENCY),--efficiency "$(EFFICIENCY)")

.PHONY: tune
tune: $(VENV)/.pipeline ## run a search of the active workload: make tune NAME=ect_schedule
	@"$(BIN)/cmlab" tune "$(NAME)"

.PHONY: adopt
adopt: $(VENV)/.pipeline ## write what a search found into params.yaml: make adopt NAME=ect_schedule
	@"$(BIN)/cmlab" adopt "$(NAME)"

.PHONY: report
report: $(VENV)/.pipeline ## tables, figures and page again, from what is there
	@"$(BIN)/cmlab" report

.PHONY: readme
readme: $(VENV)/.pipeline ## copy the default workload's table into README.md
	@"$(BIN)/cmlab" readme

.PHONY: ui
ui: $(VENV)/.pipeline ## MLflow in the browser, for this machine only
	@"$(BIN)/cmlab" ui --port "$(PORT)"

.PHONY: sync-mlflow
sync-mlflow: $(VENV)/.pipeline ## send MLflow what it missed: a server was down, or the reports came with git
	@"$(BIN)/cmlab" sync

.PHONY: import-weights
import-weights: $(VENV)/.pipeline ## describe a public weight file and what to write to use it: make import-weights FILE=edm.pkl
	@"$(BIN)/cmlab" import-weights "$(FILE)" $(if $(PART),--part "$(PART)")

.PHONY: clean-work
clean-work: $(VENV)/.pipeline ## remove checkpoints of runs that no workload file describes any more, and say how much that frees
	@"$(BIN)/cmlab" clean

.PHONY: doctor
doctor: $(VENV)/.pipeline ## is everything in order: machine, packages, DVC, Ray, MLflow, parameters
	@"$(BIN)/cmlab" doctor

.PHONY: test
test: lint ## lint, types, import contracts and tests, in minutes
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m 'not slow'

.PHONY: test-slow
test-slow: $(VENV)/.dev ## the tests that start clusters, kill processes and run searches
	@$(BIN)/python -m pytest -m slow

.PHONY: test-torch
test-torch: ## the tests of the numeric core under another PyTorch: make test-torch TORCH=2.11.0 PYTHON=python3.12
	@$(MAKE) VENV=.venv-torch .venv-torch/bin/pip
	@grep -vi torch constraints.txt > .venv-torch/constraints.txt
	@.venv-torch/bin/pip install --quiet -c .venv-torch/constraints.txt -e . torch==$(TORCH) \
		hypothesis psutil pytest pytest-timeout scikit-learn
	@.venv-torch/bin/python -m pytest -m 'not slow' $(addprefix tests/,consistency diffusion layers methods nets sample train)

.PHONY: lint
lint: $(VENV)/.dev ## format, lint, types, import contracts, spelling
	@$(BIN)/ruff format --check --quiet . || { echo 'run: make format'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell

.PHONY: format
format: $(VENV)/.dev ## format the sources
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: docs
docs: $(VENV)/.dev ## the pages of docs/ as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The environment. A stamp stands for each set of packages; it is made again when the pins or the metadata change.
define find_python
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
		if "$$python" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
		then echo "$$python"; exit; fi; \
	done
endef
# One line that moves on a terminal, silence elsewhere; errors come through either way.
define counter
awk -v tty="$$([ -t 1 ] && echo 1)" \
	'/^(Collecting|Downloading|Installing)/ && tty {printf "\r\033[K  %3d  %.60s", ++n, $$0; fflush()} END {if (n) printf "\r\033[K"}'
endef

$(VENV)/bin/pip:
	@python="$$($(find_python))"; \
	if [ -z "$$python" ]; then \
		echo 'Python 3.11, 3.12 or 3.13 with the venv module is needed and was not found.' >&2; \
		echo 'Install one, or name it: make PYTHON=/path/to/python3.11' >&2; exit 1; \
	fi; \
	"$$python" -m venv $(VENV)

$(VENV)/.pipeline: EXTRAS := pipeline
$(VENV)/.dev: EXTRAS := pipeline,metrics,latents,speech,text,onnx,dev,docs
$(VENV)/.pipeline $(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing packages into $(VENV) (once; a minute or two) ..."
	@$(BIN)/pip install --progress-bar off -c constraints.txt -e '.[$(EXTRAS)]' | $(counter)
	@touch $@
