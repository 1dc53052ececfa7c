"""The rooms and the arrows between them, as docs/decisions/0001 draws them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

ROOMS = {
    "edge_plugins": ROOT / "plugins" / "edge_plugins",
    "edge_sdk": ROOT / "edge_sdk",
    "edge_export": ROOT / "export" / "edge_export",
    "edge_ros_bridge": ROOT / "ros_bridge" / "edge_ros_bridge",
}
ARROWS = {
    "edge_plugins": set(),
    "edge_sdk": {"edge_plugins"},
    "edge_export": {"edge_plugins", "edge_sdk"},
    "edge_ros_bridge": {"edge_plugins", "edge_sdk"},
}
ONLY_IN = {"torch": "edge_export", "transformers": "edge_export", "rclpy": "edge_ros_bridge"}


def imports_of(path: Path) -> set[str]:
    """Top-level names that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room: str) -> None:
    modules = list(ROOMS[room].rglob("*.py"))
    assert modules
    for path in modules:
        found = imports_of(path)
        assert found & set(ROOMS) <= ARROWS[room] | {room}, path
        assert not {name for name, home in ONLY_IN.items() if name in found and home != room}, path


def test_the_walk_sees_a_wrong_arrow(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text("def f():\n    from edge_export import trace\n")
    assert imports_of(module) == {"edge_export"}


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    code = (
        "import sys, edge_sdk, edge_sdk.language, edge_sdk.cli, edge_sdk.backends.ort\n"
        "server = ('starlette', 'uvicorn', 'prometheus_client', 'llguidance', 'cv2')\n"
        "deploy = ('asyncssh', 'cryptography', 'rich', 'yaml')\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'rclpy', 'edge_export', *server, *deploy} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_module_starts_with_a_sentence_and_is_short() -> None:
    paths = [path for folder in (*ROOMS.values(), ROOT / "samples", ROOT / "tests") for path in folder.rglob("*.py")]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert len(text.splitlines()) <= 400, f"{path} is longer than 400 lines"


def test_ci_runs_the_readmes_test_command_and_nothing_more() -> None:
    commands = [
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make test"]
    assert "make test" in (ROOT / "README.md").read_text()


def test_the_workstations_commands_load_only_torch_before_they_begin() -> None:
    code = (
        "import sys, edge_export.cli\n"
        "others = {'sympy', 'onnx_ir', 'onnxscript', 'onnxruntime', 'transformers', 'matplotlib'}\n"
        "print(sorted((others | {'torch.distributed.fsdp'}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
