"""A systemd unit that runs a store's active slot: as the system's for root, else as the user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.deploy.run import address
from edge_sdk.deploy.store import Store
from edge_sdk.errors import DeployError, explain
from edge_sdk.files import new_file

UNIT = "edge-sdk.service"

TEXT = """# Written by `edge-sdk deploy --install`, which replaces it. Changes of your own: systemctl edit {unit}
[Unit]
Description=Edge SDK, the active slot of {store}
After=network.target
# Both bundles may be broken: then it stops trying, and `systemctl reset-failed` lets it begin anew.
StartLimitIntervalSec=600
StartLimitBurst=12

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
Restart=always
RestartSec=2
# A model may take minutes to load; from then on the server must go on answering.
TimeoutStartSec=900
WatchdogSec=60
TimeoutStopSec=30
# Of the whole board's memory: what is left belongs to the system and to other nodes.
MemoryMax=90%
TasksMax=512
NoNewPrivileges=yes

[Install]
WantedBy={target}
"""


def unit(store: Store, arguments: Sequence[str], *, system: bool) -> str:
    """The unit's text; ``arguments`` are further ones of `edge-sdk serve`. Raises ConfigError for wrong ones."""
    address(arguments)
    command = [sys.executable, "-m", "edge_sdk.deploy.run", str(store.folder.resolve())]
    command += ["--settings", str(store.settings_folder.resolve()), "--", *arguments]
    return TEXT.format(
        unit=UNIT,
        store=_escaped(str(store.folder)),
        command=" ".join(f'"{_quoted(part)}"' for part in command),
        target="multi-user.target" if system else "default.target",
    )


def install_service(store: Store, arguments: Sequence[str]) -> None:
    """Writes the unit and starts it, now and whenever the board starts. Raises DeployError."""
    system = os.geteuid() == 0
    folder = Path("/etc/systemd/system") if system else Path.home() / ".config" / "systemd" / "user"
    text = unit(store, arguments, system=system)
    _run("systemctl", "--version")  # nothing is written where there is no systemd
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / UNIT) as temporary:
        temporary.write_text(text, encoding="utf-8")
        os.chmod(temporary, 0o644)
    whose = [] if system else ["--user"]
    if not system:
        _run("loginctl", "enable-linger")  # its services run without a login
    for action in (["daemon-reload"], ["enable", UNIT], ["restart", "--no-block", UNIT]):
        _run("systemctl", *whose, *action)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        found = (done.stderr or done.stdout).strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        found = str(error)
    if found:
        todo = "Run it on the board, with what docs/deploy.md says of services."
        raise DeployError(explain(" ".join(command), expected="success", found=found, todo=todo))


def _escaped(text: str) -> str:
    """Where systemd knows specifiers but no quotes."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Within double quotes of ExecStart (systemd.service(5), "Command lines")."""
    return _escaped(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
