# make demo        plays a clip as a camera, prompts an object, prints captions, writes out/demo (CLIP=path BOX=x1,y1,x2,y2 or CLICK=x,y)
# make test        every test (PYTEST_ARGS='-k markers': any arguments of pytest)
# make test-unit   the tests of one tier, under 2 minutes; test-model and test-ros run the others, test-cuda those of a GPU
# make lint        ruff and mypy alone
# make docs        the documentation as a site in out/site (open out/site/index.html)
# make build       what the others do first (or make setup): .venv with pinned packages, and the packages built by colcon into .build
# make clean       removes what was built; make distclean removes .venv, too
# PYTHON=python3.12 picks the Python. With a ROS 2 distribution sourced, its packages are used; otherwise ROS comes from Python wheels.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
export PYTHON
RUN := .setup/run.sh
ROUTE := $(or $(ROS_DISTRO),wheels)

TIERS := test-unit test-model test-ros test-cuda

# ROS traffic stays on this machine and out of other test runs on it.
test $(TIERS) demo: export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
test $(TIERS) demo: export ROS_DOMAIN_ID := $(or $(ROS_DOMAIN_ID),$(shell echo $$((1 + $$$$ % 100))))

.PHONY: all setup build test $(TIERS) demo lint docs clean distclean FORCE
all: setup
setup build: .build/stamps/$(ROUTE)

# ROS has a process of its own: its threads stay apart from those of networks. 5: no test was selected.
# In CI, tests with ROS that failed get a second chance: on a busy machine DDS loses a message now and then.
test: setup
	@status=0; for tier in "not ros" ros $$(command -v nvidia-smi >/dev/null && echo cuda); do \
	  $(RUN) pytest -m "$$tier" $(PYTEST_ARGS) || case $$?/$$tier/$${CI:-} in \
	    5/*) ;; \
	    1/ros/true) echo "what failed is run once more, alone"; $(RUN) pytest -m ros --lf --lfnf=none || status=1 ;; \
	    *) status=1 ;; \
	  esac; \
	done; exit $$status

$(TIERS): test-%: setup
	$(RUN) pytest -m $* $(PYTEST_ARGS)

demo: setup
	$(RUN) pam demo $(if $(CLIP),--clip '$(CLIP)') $(if $(BOX),--box '$(BOX)') $(if $(CLICK),--click '$(CLICK)')

lint: setup
	$(RUN) ruff check .
	$(RUN) mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict
	@echo "open out/site/index.html"

clean:
	rm -rf .build

distclean: clean
	rm -rf .venv out

# .venv is made again if a pin or the route changes.
.venv/stamps/$(ROUTE): .setup/venv.sh .setup/route.sh .setup/mend_wheels.py $(wildcard .setup/*.txt)
	.setup/venv.sh
	mkdir -p $(@D) && touch $@

# The packages are built again if an interface changes or a file is added or removed. Python files are links: edits are live.
INTERFACES := $(wildcard msg/*.msg srv/*.srv action/*.action .setup/interfaces/*/* .setup/interfaces/*/msg/*)
.build/stamps/$(ROUTE): .venv/stamps/$(ROUTE) .build/files .setup/build.sh CMakeLists.txt package.xml $(INTERFACES)
	@echo "building the packages with colcon (a minute or two the first time) …"
	@rm -f $@
	@.setup/build.sh
	@mkdir -p $(@D) && touch $@

.build/files: FORCE
	@mkdir -p $(@D)
	@find pam_ros config launch models -type f ! -name '*.pyc' ! -path '*/.*' | sort >$@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
