"""``edge-sdk deploy``, ``slots``, ``rollback``, ``keys`` and ``sign``: boards and what they run."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.cli.arguments import Commands
from edge_sdk.errors import ConfigError, EdgeError, explain

if TYPE_CHECKING:
    from edge_sdk.deploy.boards import Board
    from edge_sdk.deploy.line import Ssh
    from edge_sdk.deploy.protocol import Question, Status

WIDTH = 240
"""Columns of a table that no terminal shows, so that its rows stay lines."""


def add_commands(commands: Commands) -> None:
    """Adds all of them."""
    deploy = commands.add_parser("deploy", help="send a bundle to boards, which check it and switch to it")
    deploy.add_argument("bundle", type=Path, help="the bundle's folder")
    _add_boards(deploy)
    deploy.add_argument("--force", action="store_true", help="also an older version")
    deploy.add_argument("--trust", type=Path, metavar="FILE", help="first: the keys that boards are to trust")
    deploy.add_argument("--settings-file", type=Path, metavar="FILE", help="first: what boards are to ask of bundles")
    deploy.add_argument("--install", action="store_true", help="also a systemd service that runs the active slot")
    deploy.add_argument("--serve", default="", metavar="ARGS", help="arguments of the service's `edge-sdk serve`")
    deploy.add_argument("--wait-s", type=float, metavar="S", help="wait so long for the service to be healthy")
    deploy.set_defaults(command=_deploy)
    slots = commands.add_parser("slots", help="say what boards hold and how they are")
    _add_boards(slots)
    slots.set_defaults(command=_slots)
    rollback = commands.add_parser("rollback", help="switch boards back to their other slot")
    _add_boards(rollback)
    rollback.add_argument("--force", action="store_true", help="also to a bundle that failed there")
    rollback.set_defaults(command=_rollback)
    keys = commands.add_parser("keys", help="make a key to sign bundles with")
    keys.add_argument("file", type=Path, help="where to write it; the public key goes beside it, as FILE.pub")
    keys.add_argument("--name", help="what boards call it (default: the file's name)")
    keys.set_defaults(command=_keys)
    sign = commands.add_parser("sign", help="sign a bundle")
    sign.add_argument("bundle", type=Path, help="the bundle's folder")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="what `edge-sdk keys` wrote")
    sign.set_defaults(command=_sign)


def _add_boards(parser: argparse.ArgumentParser) -> None:
    """Which boards, and how to reach them."""
    parser.add_argument("hosts", nargs="*", metavar="user@host", help="boards, or names from ~/.ssh/config")
    parser.add_argument("--group", type=Path, metavar="FILE", help="a YAML file that names boards")
    parser.add_argument("--store", help="the store's folder on the boards (default ~/.local/share/edge-sdk)")
    parser.add_argument("--python", help="the boards' Python that has edge-sdk[deploy] (default python3)")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="a private SSH key")
    parser.add_argument("--known-hosts", type=Path, metavar="FILE", help="known host keys (default ~/.ssh/known_hosts)")


def _boards(arguments: argparse.Namespace) -> dict[str, Board]:
    from edge_sdk.deploy.boards import Board, read_group

    given = {name: value for name in ("store", "python") if (value := getattr(arguments, name)) is not None}
    boards = {host: Board(host=host, **given) for host in arguments.hosts}
    if arguments.group is not None:
        boards |= read_group(arguments.group)
    if not boards:
        raise ConfigError(explain("The command", expected="boards", found="none", todo="Give user@host or --group."))
    return boards


def _ssh(arguments: argparse.Namespace) -> Ssh:
    from edge_sdk.deploy.line import Ssh

    return Ssh(known_hosts=arguments.known_hosts, identity=arguments.identity)


def _deploy(arguments: argparse.Namespace) -> int:
    _require_packages()
    from rich.console import Console

    from edge_sdk.bundle import Bundle
    from edge_sdk.deploy.acceptance import ACCEPTANCE
    from edge_sdk.deploy.fleet import deploy_all, describe, settle_all
    from edge_sdk.deploy.protocol import Configure

    boards, ssh, console = _boards(arguments), _ssh(arguments), Console(stderr=True)
    bundle = Bundle.open(arguments.bundle)
    if ACCEPTANCE not in bundle.manifest.files:
        console.print("The bundle has no acceptance vectors: boards switch to it without running it (docs/deploy.md).")
    settings, keys = (None if path is None else _content(path) for path in (arguments.settings_file, arguments.trust))
    if settings is not None or keys is not None:
        _ask(Configure(settings, keys), boards, ssh)
    outcomes = deploy_all(bundle, boards, ssh, force=arguments.force, console=console)
    for name, outcome in outcomes.items():
        print(f"{name}: {describe(outcome)}")
    done = {name: outcome for name, outcome in outcomes.items() if not isinstance(outcome, EdgeError)}
    reached = {name: boards[name] for name in done}
    if arguments.install and done:
        _install_service(arguments, reached, ssh)
    failures = len(boards) - len(done)
    if arguments.wait_s is not None:
        for name, reason in settle_all(done, reached, ssh, arguments.wait_s).items():
            print(f"{name}: {reason or 'healthy'}")
            failures += bool(reason)
    return 1 if failures else 0


def _install_service(arguments: argparse.Namespace, boards: dict[str, Board], ssh: Ssh) -> None:
    from edge_sdk.deploy.protocol import InstallService

    _ask(InstallService(tuple(shlex.split(arguments.serve))), boards, ssh)
    for name in boards:
        print(f"{name}: the service was started")


def _slots(arguments: argparse.Namespace) -> int:
    _require_packages()
    from edge_sdk.deploy.fleet import ask_all
    from edge_sdk.deploy.protocol import AskStatus

    return _show(ask_all(AskStatus(), _boards(arguments), _ssh(arguments)))


def _rollback(arguments: argparse.Namespace) -> int:
    _require_packages()
    from edge_sdk.deploy.fleet import ask_all
    from edge_sdk.deploy.protocol import Rollback

    return _show(ask_all(Rollback(arguments.force), _boards(arguments), _ssh(arguments)))


def _keys(arguments: argparse.Namespace) -> int:
    from edge_sdk.deploy.signing import make_keys

    key = make_keys(arguments.file, arguments.name or arguments.file.name)
    print(f"{arguments.file}: key {key.key_id}; keep it secret. Boards trust it by {arguments.file}.pub")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    from edge_sdk.deploy.signing import sign

    print(f"{arguments.bundle}: signed with key {sign(arguments.bundle, arguments.key)}")
    return 0


def _ask(question: Question, boards: dict[str, Board], ssh: Ssh) -> None:
    """Asks all boards. Raises the first one's refusal."""
    from edge_sdk.deploy.fleet import ask_all

    for answer in ask_all(question, boards, ssh).values():
        if isinstance(answer, EdgeError):
            raise answer


def _show(states: dict[str, Status | EdgeError]) -> int:
    from rich.console import Console

    from edge_sdk.deploy.fleet import table

    Console(width=None if sys.stdout.isatty() else WIDTH).print(table(states))
    return 1 if any(isinstance(status, EdgeError) for status in states.values()) else 0


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(explain(str(path), expected="a file", found=error.strerror, todo="Check it.")) from None


def _require_packages() -> None:
    """Raises ConfigError where the extra is not installed."""
    try:
        import asyncssh  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        todo = "pip install 'edge-sdk[deploy]'"
        raise ConfigError(explain("Deploying", expected="its packages", found=error, todo=todo)) from None
