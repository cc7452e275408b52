# What the Makefiles of the function and of the layers share; package.py does the work.
#
# SAM gives ARTIFACTS_DIR. Wheels are Lambda's, whatever this machine is; bytecode is made by
# the Python that Lambda runs, bound to no timestamp: a zip file keeps none.

SHELL := /bin/bash
# SAM does not tell a Makefile for which processor it builds: the template's, unless the Makefile
# of the project chooses another one, which it also writes into the built template
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
include $(HERE)checkout.mk
LAMBDA_ARCHITECTURE ?= $(shell sed -n 's/^ *Architecture: \([a-z0-9_]*\)$$/\1/p' $(HERE)../template.yaml)
PLATFORM := $(if $(filter arm64,$(LAMBDA_ARCHITECTURE)),aarch64,x86_64)-manylinux_2_28
# `sam build` may run in a shell that has not activated .venv
UV_PATH := $(HERE)../.venv/bin
# not PYTHON: `make PYTHON=… build` names the development environment's and passes it down to here
PYTHON_OF_LAMBDA := $(shell PATH="$$PATH:$(UV_PATH)" PYENV_VERSION=3.13 uv python find --no-project 3.13 2>/dev/null)
# the value as it was given: make would expand a `$` in it
override ARTIFACTS_DIR := $(value ARTIFACTS_DIR)
export ARTIFACTS_DIR PYTHON_OF_LAMBDA

# $(call package,PART): one command, so that `make -i` cannot skip the checks that it starts with
define package
	@[ -n "$$PYTHON_OF_LAMBDA" ] || { echo "build: CPython 3.13 is not here; get it with: uv python install 3.13" >&2; exit 1; }; \
	  PATH="$$PATH:$(UV_PATH)" exec "$$PYTHON_OF_LAMBDA" -B $(HERE)package.py $(1) $(PLATFORM)
endef
