"""The tests on a GPU use the operator matrix of the folder beside this one."""

from __future__ import annotations

import sys

from places import ROOT

sys.path.insert(0, str(ROOT / "tests" / "plugins"))
