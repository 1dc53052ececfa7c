"""``edge-sdk pack-wheels``: what a board without internet is installed from."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_sdk.cli.arguments import Commands
from edge_sdk.errors import ConfigError, explain

MIB = 1 << 20


def add_commands(commands: Commands) -> None:
    """Adds ``pack-wheels``."""
    pack = commands.add_parser("pack-wheels", help="collect what a board without internet is installed from")
    pack.add_argument(
        "--target",
        required=True,
        help="jetpack6, jetpack7, this for a machine like this one, or its Python, processor and glibc, "
        "such as 3.11-aarch64-2.36",
    )
    pack.add_argument("--out", type=Path, required=True, help="a folder, or an archive if it ends in .tar")
    pack.add_argument("--extras", default="cpu", help="of Edge SDK, with commas between (default cpu)")
    pack.add_argument(
        "--with",
        dest="packages",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="another package; may be repeated",
    )
    pack.add_argument(
        "--find-links", action="append", default=[], metavar="PLACE", help="a folder of wheels; may be repeated"
    )
    pack.add_argument("--index-url", default="", metavar="URL", help="a package index in place of PyPI")
    pack.add_argument("--source", type=Path, help="the checkout to build from (default: the one this runs from)")
    pack.add_argument("--wheel", type=Path, help="Edge SDK's own wheel, in place of building one")
    pack.add_argument(
        "--without-kernels", action="store_true", help="where there is no compiler: the board runs slower"
    )
    pack.set_defaults(command=_pack)


def _pack(arguments: argparse.Namespace) -> int:
    from edge_sdk.offline.commands import find_checkout, require_packages
    from edge_sdk.offline.pack import Request, pack
    from edge_sdk.offline.target import target_named

    require_packages()
    request = Request(
        target=target_named(arguments.target),
        extras=tuple(name.strip() for name in arguments.extras.split(",") if name.strip()),
        packages=tuple(arguments.packages),
        find_links=tuple(arguments.find_links),
        index_url=arguments.index_url,
    )
    own = arguments.wheel or arguments.source or find_checkout()
    if own is None:
        todo = "Give a checkout with --source, or Edge SDK's wheel with --wheel."
        raise ConfigError(explain("Edge SDK's own wheel", expected="its sources", found="none", todo=todo))
    done = pack(request, arguments.out, own, kernels=not arguments.without_kernels)
    print(
        f"{done.path}: {done.wheels} wheels for {request.target}, {done.wheel_bytes / MIB:.0f} MiB, "
        f"{done.installed_bytes / MIB:.0f} MiB installed"
    )
    place = f"tar xf {done.path.name} && cd {done.path.stem}" if done.path.suffix == ".tar" else f"cd {done.path.name}"
    print(f"on the board: {place} && sh install.sh FOLDER")
    return 0
