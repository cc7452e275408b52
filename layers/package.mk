# The steps that the builds of the function and of the layers share.
#
# SAM gives ARTIFACTS_DIR. Wheels are Lambda's, whatever this machine is; bytecode is made by
# the Python that Lambda runs, bound to no timestamp: a zip file keeps none.

SHELL := /bin/bash
# SAM does not tell a Makefile for which processor it builds: the template's, unless the Makefile
# of the project chooses another one, which it also writes into the built template
HERE := $(dir $(lastword $(MAKEFILE_LIST)))
LAMBDA_ARCHITECTURE ?= $(shell sed -n 's/^ *Architecture: \([a-z0-9_]*\)$$/\1/p' $(HERE)../template.yaml)
PLATFORM := $(if $(filter arm64,$(LAMBDA_ARCHITECTURE)),aarch64,x86_64)-manylinux_2_28
# not PYTHON: that one names the workshop's, and `make PYTHON=… build` hands it down to here
PYTHON_OF_LAMBDA := $(shell PYENV_VERSION=3.13 uv python find --no-project 3.13 2>/dev/null)

# $(call install,FOLDER): what requirements.txt pins, without what only developers read
define install
	@uv pip install --quiet --target $(1) --python $(PYTHON_OF_LAMBDA) --python-version 3.13 \
	  --python-platform $(PLATFORM) --only-binary :all: --no-deps --require-hashes \
	  --link-mode copy -r requirements.txt
	@# numpy's own testing imports one of its tests
	@find $(1) -type d -name tests -not -path '*/numpy/_core/*' -prune -exec rm -r {} +
	@find $(1) -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \
	  -o -name '*.c' -o -name '*.cpp' -o -name '*.a' -o -name 'RECORD' \) -delete
	@rm -rf $(1)/bin $(1)/.lock $(1)/sklearn/datasets/{data,descr,images}
	@find $(1) -type d -empty -delete
endef

# $(call compile,FOLDER,PLACE): bytecode that Lambda takes as it is; PLACE is FOLDER's path there.
# One process and one order of hashing: what was compiled before leaves its mark in the bytes.
define compile
	@PYTHONHASHSEED=0 $(PYTHON_OF_LAMBDA) -m compileall -q -j 1 --invalidation-mode unchecked-hash $(3) \
	  -s $(1) -p $(2) $(1)
endef

# $(call bytecode,FOLDER,PLACE): the same, in place of the sources
define bytecode
	$(call compile,$(1),$(2),-b)
	@find $(1) -name '*.py' -delete
endef

.PHONY: python
python:
	@[ -n "$(PYTHON_OF_LAMBDA)" ] || { echo "build: CPython 3.13 is not here; get it with: uv python install 3.13" >&2; exit 1; }
