# The two commands of the README, and the environments they need. Everything stays inside the checkout.
PYTHON ?= python3
WORKSTATION := .venvs/workstation
ROBOT := .venvs/robot
ROS := .venvs/ros
PIP := pip install --quiet --disable-pip-version-check

.PHONY: demo test lint envs clean

demo: envs
	@$(WORKSTATION)/bin/python samples/scan_rover/demo.py

test: envs
	$(ROBOT)/bin/python -m pytest tests/runtime
	$(WORKSTATION)/bin/python -m pytest

lint: envs
	$(WORKSTATION)/bin/$(PIP) -c export/constraints.txt -e '.[dev]'
	$(WORKSTATION)/bin/ruff format --check .
	$(WORKSTATION)/bin/ruff check .
	$(WORKSTATION)/bin/mypy

# Independent of each other: two cores build them side by side.
envs:
	@$(MAKE) --no-print-directory -j3 $(WORKSTATION)/ready $(ROBOT)/ready $(ROS)/ready

$(WORKSTATION)/ready: INSTALL = -c export/constraints.txt -e '.[export,test]'
$(WORKSTATION)/ready: setup.py export/constraints.txt
	@$(build)

$(ROBOT)/ready: INSTALL = -e '.[cpu]' pytest hypothesis
$(ROBOT)/ready: setup.py
	@$(build)

$(ROS)/ready: FIRST = --require-hashes -r ros_bridge/requirements-jazzy.txt
$(ROS)/ready: INSTALL = -e '.[cpu]' -e ros_bridge
$(ROS)/ready: setup.py ros_bridge/setup.py ros_bridge/requirements-jazzy.txt
	@$(build)

# A fresh environment, and how long it took.
define build
echo "[setup] $(@D) ..." && started=$$(date +%s) && rm -rf $(@D) && $(PYTHON) -m venv $(@D) \
  $(if $(FIRST),&& $(@D)/bin/$(PIP) $(FIRST)) && $(@D)/bin/$(PIP) $(INSTALL) \
  && touch $@ && echo "[setup] $(@D) ready after $$(($$(date +%s) - started)) s"
endef

clean:
	rm -rf .venvs build
