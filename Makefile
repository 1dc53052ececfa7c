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

$(WORKSTATION)/ready: setup.py export/constraints.txt
	@$(call build,-c export/constraints.txt -e '.[export,test]')

$(ROBOT)/ready: setup.py
	@$(call build,-e '.[cpu]' pytest hypothesis)

$(ROS)/ready: setup.py ros_bridge/setup.py ros_bridge/requirements-jazzy.txt
	@$(call build,--require-hashes -r ros_bridge/requirements-jazzy.txt,-e '.[cpu]',-e ros_bridge)

# A fresh environment with one or several pip installs, and how long that took.
define build
echo "[setup] $(@D) ..." && started=$$(date +%s) && rm -rf $(@D) && $(PYTHON) -m venv $(@D) \
  $(if $(1),&& $(@D)/bin/$(PIP) $(1)) $(if $(2),&& $(@D)/bin/$(PIP) $(2)) $(if $(3),&& $(@D)/bin/$(PIP) $(3)) \
  && touch $@ && echo "[setup] $(@D) ready after $$(($$(date +%s) - started)) s"
endef

clean:
	rm -rf .venvs build
