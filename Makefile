# The two commands of the README, and the environments they need. Everything stays inside the checkout.
PYTHON ?= python3
WORKSTATION := .venvs/workstation
ROBOT := .venvs/robot
ROS := .venvs/ros
KILTED := .venvs/ros-kilted
# What is imported is compiled then: pip would compile all that there is, first.
PIP := pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test test-kilted test-gpu lint envs native debian clean

demo: envs
	@$(WORKSTATION)/bin/python samples/scan_rover/demo.py

# Two processes, each with one thread for torch's products: of two, one would spin while the other process has its core.
PARALLEL := OMP_NUM_THREADS=1
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
# What no version of ONNX Runtime can change: the robot's environment has the newest, the workstation's the oldest.
WITHOUT_ENGINE := $(patsubst %,tests/runtime/test_%.py,boards camera chat_format files structured)

# A compile that fails costs users only speed; here it is an error. What needs the machine to itself, and the robot, comes
# last and by itself.
test: export EDGE_SDK_REQUIRE_NATIVE = 1
test: ENVS += $(KILTED)/ready
test: debian envs
	$(PARALLEL) $(ROBOT)/bin/python -m pytest $(SHARED) tests/runtime
	$(PARALLEL) $(WORKSTATION)/bin/python -m pytest $(SHARED) --ignore tests/ros --ignore tests/test_readme.py \
	  $(WITHOUT_ENGINE:%=--ignore %)
	$(WORKSTATION)/bin/python -m pytest tests/ros tests/test_readme.py
	$(WORKSTATION)/bin/python -m pytest tests/ros -m kilted --ros-python $(KILTED)/bin/python

# All ROS tests by the wheels of ROS 2 Kilted, which `test` runs a part of; the rest wants images, bags and grammars.
test-kilted: $(WORKSTATION)/ready $(KILTED)/ready
	$(KILTED)/bin/$(PIP) -e '.[structured,vision]' -e 'ros_bridge[record]'
	$(WORKSTATION)/bin/python -m pytest tests/ros --ros-python $(KILTED)/bin/python

# On a machine with an NVIDIA GPU and nvcc, by its own Python, which needs torch, numpy, onnx, ml_dtypes, hypothesis,
# pybind11, CMake, Ninja, pytest and pytest-xdist: no environment is made and nothing fetched. For the peers mamba_ssm
# and, for an engine, msgspec, jinja2, tokenizers, onnxscript, onnxruntime, rich, typer, safetensors and tensorrt_rtx.
GPU_RESULTS := build/gpu
test-gpu: export PYTHONPATH := .:plugins:export:tests:$(PYTHONPATH)
test-gpu:
	@command -v nvidia-smi > /dev/null || { echo "make test-gpu: no GPU here: there is no nvidia-smi"; exit 1; }
	$(PYTHON) -m pytest -n 8 -rs --device gpu tests/plugins/test_cuda_*.py tests/gpu
	$(PYTHON) benchmarks/gpu_ops.py --out $(GPU_RESULTS) \
	  --module $$($(PYTHON) -c 'from devices import *; print(gpu_module(capability()).__file__)')
	$(PYTHON) benchmarks/gpu_engine.py --out $(GPU_RESULTS)

lint: envs
	$(WORKSTATION)/bin/$(PIP) -c export/constraints.txt -e '.[dev]'
	$(WORKSTATION)/bin/ruff format --check .
	$(WORKSTATION)/bin/ruff check .
	$(WORKSTATION)/bin/mypy

# Independent of each other: two cores build them side by side. They share the kernels, which are compiled once.
ENVS := $(WORKSTATION)/ready $(ROBOT)/ready $(ROS)/ready
envs:
	@$(MAKE) --no-print-directory -j3 $(ENVS)
	@$(MAKE) --no-print-directory native

# The kernels anew, where their sources are newer than what the environments hold.
native: .venvs/native
.venvs/native: $(shell find plugins -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt) | $(WORKSTATION)/ready
	@echo "[setup] native kernels ..." && $(WORKSTATION)/bin/$(PIP) --no-deps -e . && touch $@

# What tests need beyond Python: compilers, an emulator for Arm, and an SSH server (which Debian starts where systemd runs).
# Without the last two some tests are skipped.
debian: export PATH := $(PATH):/usr/sbin
debian:
	@missing=""; need() { command -v "$$1" > /dev/null || missing="$$missing $$2"; }; \
	need c++ g++; need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu; need qemu-aarch64-static qemu-user-static; \
	need sshd openssh-server; \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2> /dev/null \
	  || missing="$$missing python3-dev"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then echo "[setup] apt-get install$$missing"; \
	  { apt-get update -qq && apt-get install -qq -y --no-install-recommends $$missing; } > /dev/null 2>&1 \
	  || echo "[setup] that failed: some tests will be skipped"; \
	else echo "[setup] not installed:$$missing: some tests will be skipped"; fi

$(WORKSTATION)/ready: INSTALL = -c export/constraints.txt -e '.[export,test]'
$(WORKSTATION)/ready: setup.py export/constraints.txt
	@$(build)

$(ROBOT)/ready: INSTALL = -e '.[cpu,server,structured,vision]' pytest pytest-xdist hypothesis jsonschema openai
$(ROBOT)/ready: setup.py
	@$(build)

$(ROS)/ready: DISTRIBUTION = jazzy
$(KILTED)/ready: DISTRIBUTION = kilted
$(ROS)/ready $(KILTED)/ready: FIRST = --require-hashes -r ros_bridge/requirements-$(DISTRIBUTION).txt
$(ROS)/ready: INSTALL = -e '.[cpu,structured,vision]' -e 'ros_bridge[record]' cmake ninja
$(KILTED)/ready: INSTALL = -e '.[cpu]' -e ros_bridge cmake ninja
$(ROS)/ready $(KILTED)/ready: THEN = sh ros_bridge/msgs/install.sh $(@D)
$(ROS)/ready: ros_bridge/requirements-jazzy.txt
$(KILTED)/ready: ros_bridge/requirements-kilted.txt
$(ROS)/ready $(KILTED)/ready: setup.py ros_bridge/setup.py $(shell find ros_bridge/msgs -type f)
	@$(build)

# A fresh environment, and how long it took.
define build
echo "[setup] $(@D) ..." && started=$$(date +%s) && rm -rf $(@D) && $(PYTHON) -m venv $(@D) \
  $(if $(FIRST),&& $(@D)/bin/$(PIP) $(FIRST)) && $(@D)/bin/$(PIP) $(INSTALL) $(if $(THEN),&& $(THEN)) \
  && touch $@ .venvs/native && echo "[setup] $(@D) ready after $$(($$(date +%s) - started)) s"
endef

clean:
	rm -rf .venvs build plugins/edge_plugins/native/*.so plugins/edge_plugins/native/build.log
