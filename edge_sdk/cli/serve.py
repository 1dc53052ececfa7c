"""``edge-sdk serve``: a bundle behind OpenAI's HTTP API."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sdk.cli.arguments import Commands, add_engine, load, read_text
from edge_sdk.errors import ConfigError, explain

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"
FINISH_S = 5

log = logging.getLogger("edge_sdk.server")


def add_commands(commands: Commands) -> None:
    """Adds ``serve``."""
    serve = commands.add_parser("serve", help="answer over HTTP, as OpenAI's API does")
    add_engine(serve)
    serve.add_argument("--host", default=LOOPBACK, help=f"address to listen at (default {LOOPBACK}, this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="port to listen at, 0 for any free one (default 8000)")
    serve.add_argument("--fd", type=int, action="append", help=argparse.SUPPRESS)  # sockets that listen already
    serve.add_argument("--name", help="what clients call the model (default: the bundle folder's name)")
    serve.add_argument("--token-file", type=Path, metavar="FILE", help="holds the bearer token that clients must show")
    serve.add_argument("--at-once", type=int, default=4, metavar="N", help="requests answered side by side (default 4)")
    serve.add_argument("--waiting", type=int, default=16, metavar="N", help="requests that may wait (default 16)")
    serve.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="longest answer (default 4096)")
    serve.add_argument("--max-body", type=int, default=4 << 20, metavar="BYTES", help="longest request (default 4 MiB)")
    serve.add_argument("--figures", type=Path, metavar="FOLDER", help="say there each second how fast it answers")
    serve.add_argument(
        "--finish-s",
        type=int,
        default=FINISH_S,
        metavar="S",
        help=f"what answers are given to end (default {FINISH_S})",
    )
    serve.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    try:
        import uvicorn

        from edge_sdk.server.app import Settings, create_app
        from edge_sdk.server.handover import HandoverServer, LastCall
        from edge_sdk.server.translate import Limits
    except ImportError as error:
        raise ConfigError(
            explain("The server", expected="its packages", found=error, todo="pip install 'edge-sdk[server]'")
        ) from None
    token = None if arguments.token_file is None else read_text(arguments.token_file).strip()
    if token == "":
        raise ConfigError(explain(str(arguments.token_file), expected="a token", found="none", todo="Write one."))
    if token is None and not _is_loopback(arguments.host):
        log.warning("whoever reaches %s may use this model: give a --token-file", arguments.host)
    settings = Settings(
        name=arguments.name or Path(arguments.bundle).resolve().name,
        token=token,
        at_once=arguments.at_once,
        waiting=arguments.waiting,
        limits=Limits(new_tokens=arguments.max_tokens, body_bytes=arguments.max_body),
        figures=arguments.figures,
    )
    app = LastCall(create_app(load(arguments, slots=max(1, arguments.at_once)), settings))
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,  # requests are logged with what they cost
        timeout_graceful_shutdown=arguments.finish_s,
    )
    listening = _listening(config, arguments.fd)
    host, port = listening[0].getsockname()[:2]
    print(f"serving {settings.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
    HandoverServer(config, app).run(sockets=listening)
    return 0


def _listening(config: uvicorn.Config, descriptors: list[int] | None) -> list[socket.socket]:
    """Those that were handed over, or one of its own."""
    return [config.bind_socket()] if descriptors is None else [socket.socket(fileno=one) for one in descriptors]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
