"""A systemd unit that runs a store's active slot: as the system's for root, else as the user's own."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.deploy.run import address
from edge_sdk.deploy.store import Store
from edge_sdk.errors import DeployError, explain
from edge_sdk.files import new_file

UNIT = "edge-sdk.service"
COMMAND_TIMEOUT_S = 60.0
"""Of each of systemd's: `daemon-reload` was seen to take 24 s on a busy emulated board."""

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
SyslogIdentifier=edge-sdk
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
# The server asks for nothing but files, memory, the network and the board's devices.
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
{only_system}
[Install]
WantedBy={target}
"""

ONLY_SYSTEM = """ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectSystem=full
ReadWritePaths="{store}"
"""
"""What a user's service manager may not do before systemd 254."""


def unit(store: Store, arguments: Sequence[str], *, system: bool) -> str:
    """The unit's text; ``arguments`` are further ones of `edge-sdk serve`. Raises ConfigError for wrong ones."""
    address(arguments)
    command = [sys.executable, "-m", "edge_sdk.deploy.run", str(store.folder.resolve())]
    command += ["--settings", str(store.settings_folder.resolve()), "--", *arguments]
    return TEXT.format(
        unit=UNIT,
        only_system=ONLY_SYSTEM.format(store=_quoted(str(store.folder.resolve()))) if system else "",
        store=_escaped(str(store.folder)),
        command=" ".join(f'"{_argument(part)}"' for part in command),
        target="multi-user.target" if system else "default.target",
    )


def install_service(store: Store, arguments: Sequence[str]) -> None:
    """Writes the unit and starts it, now and whenever the board starts. Raises DeployError."""
    system = os.geteuid() == 0
    folder = Path("/etc/systemd/system") if system else Path.home() / ".config" / "systemd" / "user"
    text = unit(store, arguments, system=system)
    _run("systemctl", "--version")  # nothing is written where there is no systemd
    if not system:
        _linger()
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / UNIT) as temporary:
        temporary.write_text(text, encoding="utf-8")
        os.chmod(temporary, 0o644)
    whose = [] if system else ["--user"]
    for action in (["daemon-reload"], ["enable", UNIT], ["restart", "--no-block", UNIT]):
        _run("systemctl", *whose, *action)


def _linger() -> None:
    """Lets this account's services run without a login. Raises DeployError where only root may allow that."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    asked = ("loginctl", "show-user", name, "--property=Linger", "--value")
    if _output(*asked)[1] != "yes":
        _run("loginctl", "enable-linger", name, todo=f"Once, on the board: sudo loginctl enable-linger {name}")


def _run(*command: str, todo: str = "Run it on the board, with what docs/deploy.md says of services.") -> None:
    """Raises DeployError where it fails."""
    status, said = _output(*command)
    if status:
        raise DeployError(explain(" ".join(command), expected="success", found=said, todo=todo))


def _output(*command: str) -> tuple[int, str]:
    """The exit status, and what was said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    said = done.stderr or done.stdout if done.returncode else done.stdout
    return done.returncode, said.strip() or f"exit status {done.returncode}"


def _escaped(text: str) -> str:
    """Where systemd knows specifiers but no quotes."""
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Within double quotes (systemd.syntax(7), "Quoting")."""
    return _escaped(text).replace("\\", "\\\\").replace('"', '\\"')


def _argument(text: str) -> str:
    """Within double quotes of ExecStart, which knows variables too (systemd.service(5), "Command lines")."""
    return _quoted(text).replace("$", "$$")
