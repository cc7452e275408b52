# Every target sets itself up; `make` alone lists them.
#
# Recipes write and delete inside the checkout only, and delete only what make created. Paths are
# relative, and values that a user gives reach the shell as quoted environment variables.
.DEFAULT_GOAL := help
SHELL := /bin/bash

$(if $(wildcard layers/checkout.mk),,$(error run make in the folder of this Makefile, or with -C))
include layers/checkout.mk

PYTHON  ?= python3
BIN     := .venv/bin
READY   := .venv/ready
CLIENTS := .venv-clients/ready
PINS    := requirements/uv.txt requirements/dev.txt
LOCK    := uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
           --no-emit-index-url --generate-hashes --no-annotate --no-header
# uv asks the registry that pip is configured for, and no other
INDEX    = $$(python -m pip config list | sed -n "s/^[a-z:]*\.index-url='\(.*\)'/UV_DEFAULT_INDEX=\1/p" | tail -1)

# The workshop's own tools come first; uv trusts the certificates that the system trusts.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export UV_SYSTEM_CERTS ?= 1
export SAM_CLI_TELEMETRY ?= 0
# x86_64 or arm64; the default is the template's
ARCHITECTURE ?= $(shell sed -n 's/^ *Architecture: \([a-z0-9_]*\)$$/\1/p' template.yaml)
export LAMBDA_ARCHITECTURE = $(ARCHITECTURE)

PORT ?= 3000
ROOT ?= models
COUNT ?= 100000
PART ?=
# recipes read these from the environment; `value`: a `$` in them is not make's
override PORT := $(value PORT)
override ROOT := $(value ROOT)
override COUNT := $(value COUNT)
override PART := $(value PART)
export PORT ROOT COUNT PART
CHECKOV := .venv-checkov/ready
MLSERVER := .venv-mlserver/ready
SBOM    := build/sbom.cdx.json
DEPLOYED := handler/requirements.txt layers/sklearn/requirements.txt
AUDIT   := .venv-audit/ready

# $(call refuse_symlinks,TARGET,PATH…): what is written through a link is not in the checkout
define refuse_symlinks
for path in $(2); do [ ! -L "$$path" ] || \
  { echo "$(1): $$path is a symbolic link, and make writes inside the checkout only: remove the link" >&2; exit 1; }; done
endef

comma := ,
# $(call create_venv,FOLDER,PYTHONS): an empty virtual environment, in place of an older one of make's
define create_venv
$(call refuse_symlinks,setup,$(1)); \
if [ -e $(1) ] && [ ! -e $(1)/created-by-make ] && [ ! -e $(1)/ready ]; then \
  echo "setup: $(1) was not created by make: move it away" >&2; exit 1; fi; \
uv venv --quiet --clear --no-project --python '$(2)' $(1) && touch $(1)/created-by-make
endef

.PHONY: help setup models serve local doctor test gates audit check soak bench build dist lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(READY) ## make .venv with every pinned dependency (any Python from 3.11 on)

$(READY): $(PINS) pyproject.toml handler/mlserverless/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "setup: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.13 setup" >&2; exit 1; }
	@echo "setup: .venv with $$($(PYTHON) --version), dependencies pinned by hash in requirements/"
	@$(call refuse_symlinks,setup,.venv); [ -x $(BIN)/python ] || \
	  { [ -e .venv ] || { mkdir .venv && touch .venv/created-by-make; }; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@env $(INDEX) uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements/dev.txt
	@uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(CLIENTS): requirements/clients.txt | $(READY)
	@echo "setup: .venv-clients with tritonclient, kserve and httpx, for the tests"
	@$(call create_venv,.venv-clients,>=3.11$(comma)<3.14) && \
	  env $(INDEX) uv pip install --quiet --python .venv-clients/bin/python --require-hashes \
	    -r requirements/clients.txt && touch $@ \
	  || echo "setup: left out: no Python from 3.11 to 3.13 to run the clients with"

# apart from the rest: each pins what others need newer
$(AUDIT) $(CHECKOV): .venv-%/ready: requirements/%.txt | $(READY)
	@echo "setup: .venv-$*"
	@$(call create_venv,.venv-$*,>=3.11$(comma)<3.14)
	@env $(INDEX) uv pip install --quiet --python .venv-$*/bin/python --require-hashes -r $<
	@touch $@

models: setup ## train the models under models/ whose artifact is missing or old
	@local/models train

serve: setup models ## train the digits model, serve it on 127.0.0.1:8080, send a first request; Ctrl-C ends it
	@exec python local/serve.py

local: build ## answer on 127.0.0.1:3000 in a container, as Lambda would: sam local (PORT=…; needs Docker)
	@local/image "$$LAMBDA_ARCHITECTURE"
	@exec sam local start-api --port "$$PORT"

doctor: setup models ## say what would keep the models of ROOT=models (or s3://bucket/prefix) from being served
	@mlserverless doctor "$$ROOT"

test: setup models $(CLIENTS) ## run the tests, with branch coverage
	@pytest --cov --cov-report=term-missing

gates: setup $(CHECKOV) ## lint, types, floors: everything that needs no run
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-logo
	@sam validate
	@.venv-checkov/bin/checkov --quiet --compact --skip-download --framework cloudformation serverless \
	  --file template.yaml

audit: $(AUDIT) ## ask for known vulnerabilities of every pin; says so where nobody can be asked
	@.venv-audit/bin/python requirements/audit.py

bench: build $(MLSERVER) ## measure every figure beside its peers (wrk is wanted, too); part of it: PART=cold_start
	@command -v wrk >/dev/null || { echo "bench: wrk is not here; get it with: apt-get install wrk" >&2; exit 1; }
	@set -f; python benchmarks/run.py $$PART
	@[ -n "$$PART" ] || python benchmarks/curves.py

$(MLSERVER): requirements/mlserver.txt | $(READY)
	@echo "setup: .venv-mlserver, the peer"
	@$(call create_venv,.venv-mlserver,>=3.11$(comma)<3.13)
	@env $(INDEX) uv pip install --quiet --python .venv-mlserver/bin/python --compile-bytecode --require-hashes \
	  -r requirements/mlserver.txt
	@touch $@

soak: setup models ## ask 100,000 times (COUNT=), load the local server for 30 s: nothing may grow or fail (wrk is wanted)
	@command -v wrk >/dev/null || { echo "soak: wrk is not here; get it with: apt-get install wrk" >&2; exit 1; }
	@python tests/soak.py "$$COUNT" 30

check: gates test ## everything that must hold before a commit

clean: ## remove everything that make created, and nothing else
	@local/clean

build: setup models $(SBOM) ## build the function, its layers and a list of their parts, as `sam build` does (ARCHITECTURE=arm64)
	@$(call refuse_symlinks,build,.aws-sam .aws-sam/build)
	@case "$$LAMBDA_ARCHITECTURE" in x86_64|arm64) ;; \
	  *) echo "build: ARCHITECTURE is x86_64 or arm64, not $$LAMBDA_ARCHITECTURE" >&2; exit 1;; esac
	@env $(INDEX) sam build
	@sed -i.bak "s/^\( *[A-Za-z]*Architecture:\) [a-z0-9_]*$$/\1 $$LAMBDA_ARCHITECTURE/" .aws-sam/build/template.yaml
	@rm .aws-sam/build/template.yaml.bak
	@PYTHONPATH=handler python -m mlserverless.package_size .aws-sam/build

dist: setup ## build the wheel and the source archive into build/dist
	@$(call refuse_symlinks,dist,build build/dist)
	@uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir build/dist .

$(SBOM): $(DEPLOYED) | $(AUDIT)
	@$(call refuse_symlinks,build,build $(SBOM))
	@mkdir -p $(@D)
	@cat $(DEPLOYED) | .venv-audit/bin/cyclonedx-py requirements --output-reproducible -o $@ -

lock: $(READY) ## pin the newest allowed versions anew
	$(LOCK) requirements/dev.in -o requirements/dev.txt --upgrade
	$(LOCK) requirements/uv.in -o requirements/uv.txt --constraints requirements/dev.txt
	$(LOCK) handler/requirements.in -o handler/requirements.txt --constraints requirements/dev.txt
	$(LOCK) layers/sklearn/requirements.in -o layers/sklearn/requirements.txt --constraints requirements/dev.txt
	$(LOCK) requirements/deploy.in -o requirements/deploy.txt --constraints requirements/dev.txt
	$(LOCK) requirements/runtime.in -o requirements/runtime.txt --constraints requirements/dev.txt
	for each in audit checkov clients mlserver; do uv pip compile --quiet --python-version 3.11 \
	  --no-emit-index-url --generate-hashes --no-annotate --no-header \
	  requirements/$$each.in -o requirements/$$each.txt --upgrade || exit 1; done
