"""A line to a board's agent: SSH, whose host key must be known, and frames over the agent's input and output."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import msgspec

from edge_sdk.deploy.boards import Board
from edge_sdk.deploy.protocol import (
    HEADER,
    PROTOCOL,
    Answer,
    Question,
    Refused,
    Welcome,
    decode_answer,
    frame,
    frame_length,
)
from edge_sdk.errors import BusyError, DeployError, explain

if TYPE_CHECKING:
    import asyncssh

KNOWN_HOSTS = Path("~/.ssh/known_hosts")
PORT = 22


class Ssh(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach boards, besides what ~/.ssh/config says."""

    known_hosts: Optional[Path] = None
    identity: Optional[Path] = None
    """A private key, tried before those of an agent and of ~/.ssh."""
    connect_timeout_s: float = 30.0
    start_s: float = 120.0
    """What a board is given to start its agent: a small or busy one imports Python's packages for long."""
    stall_s: float = 30.0
    """Silence after which a line counts as lost, once the agent runs."""
    attempts: int = 8
    """To go on with a transfer after the line was lost without anything coming through."""
    longest_pause_s: float = 30.0
    """Between two attempts; the first is a second."""
    idle_s: float = 20.0
    """Silence after which the board's agent gives up."""


class LineLostError(Exception):
    """The line broke or stalled; what was sent is there, and the rest may be tried again."""


class Line:
    """One conversation with an agent."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], board: Board, stall_s: float) -> None:
        self._process, self._board, self._stall_s = process, board, stall_s

    async def ask(self, question: Question, *, timeout_s: float | None = None) -> Answer:
        """One question and its first answer. Raises what :meth:`send` and :meth:`receive` do."""
        await self.send(question)
        return await self.receive(timeout_s)

    async def send(self, question: Question) -> None:
        """Raises LineLostError, and what the board refused meanwhile."""
        try:
            self._process.stdin.write(frame(question))
            await asyncio.wait_for(self._process.stdin.drain(), self._stall_s)
        except (OSError, asyncio.TimeoutError) as error:
            if isinstance(error, BrokenPipeError):
                await self.receive()  # a refusal, if that is why it reads no more
            raise LineLostError("the board takes nothing more") from None

    async def receive(self, timeout_s: float | None = None) -> Answer:
        """The next answer, within ``stall_s`` if nothing else is given.

        Raises LineLostError, DeployError for a refusal and BusyError where another deployment goes on.
        """
        try:
            answer = await asyncio.wait_for(self._read(), self._stall_s if timeout_s is None else timeout_s)
        except asyncio.IncompleteReadError:
            raise await self._ended() from None
        except (OSError, asyncio.TimeoutError) as error:
            raise LineLostError(str(error) or "the board is silent") from None
        if isinstance(answer, Refused):
            raise (BusyError if answer.busy else DeployError)(answer.reason)
        return answer

    async def _read(self) -> Answer:
        import asyncssh

        try:
            header = await self._process.stdout.readexactly(HEADER.size)
            return decode_answer(await self._process.stdout.readexactly(frame_length(header)))
        except asyncssh.Error as error:
            raise LineLostError(error.reason) from None

    async def _ended(self) -> Exception:
        """Why there is no answer: the agent could not be started, or the line is gone."""
        import asyncssh

        try:
            said = await asyncio.wait_for(self._process.stderr.read(), self._stall_s)
            await asyncio.wait_for(self._process.wait_closed(), self._stall_s)  # until its exit status is known
        except (OSError, asyncssh.Error, asyncio.TimeoutError):
            said = b""
        if self._process.exit_status in (None, 0):
            return LineLostError("the board hung up")
        lines = said.decode(errors="replace").strip().splitlines()
        todo = f"Is edge-sdk[deploy] installed for {self._board.python} on the board? --python names another."
        found = lines[-1] if lines else f"exit status {self._process.exit_status}"
        return DeployError(explain(f"The agent on {self._board.host}", expected="an answer", found=found, todo=todo))


@asynccontextmanager
async def connected(board: Board, ssh: Ssh) -> AsyncIterator[Line]:
    """A line to a board. Raises LineLostError where it cannot be reached, and DeployError where it must not be used."""
    asyncssh = _asyncssh()
    user, host, port = board.address()
    options: dict[str, Any] = {"keepalive_interval": 30, "connect_timeout": ssh.connect_timeout_s}
    options |= {"username": user} if user else {}
    options |= {"port": port} if port else {}
    options |= {"known_hosts": str(ssh.known_hosts)} if ssh.known_hosts else {}
    options |= {"client_keys": [str(ssh.identity)]} if ssh.identity else {}
    command = [board.python, "-m", "edge_sdk.deploy.agent", board.store, "--idle-s", str(ssh.idle_s)]
    command += ["--settings", board.settings] if board.settings else []
    try:
        async with asyncssh.connect(host, **options) as connection:
            process = await connection.create_process(shlex.join(command), encoding=None)
            line = Line(process, board, ssh.stall_s)
            welcome = await line.receive(ssh.start_s)
            if not isinstance(welcome, Welcome) or welcome.protocol != PROTOCOL:
                todo = "Bring both sides to the same version of Edge SDK."
                raise DeployError(explain(board.host, expected=f"protocol {PROTOCOL}", found=welcome, todo=todo))
            yield line
    except asyncssh.HostKeyNotVerifiable as error:
        raise _unverified(board, ssh, error.reason) from None
    except asyncssh.PermissionDenied as error:
        todo = "Log in with ssh first: ssh-copy-id puts your key there."
        raise DeployError(explain(board.host, expected="a key that it knows", found=error.reason, todo=todo)) from None
    except (asyncssh.Error, OSError, asyncio.TimeoutError) as error:
        raise LineLostError(getattr(error, "reason", "") or str(error) or "no answer") from None


def _unverified(board: Board, ssh: Ssh, reason: str) -> DeployError:
    """The host's key is not the one that is known, or none is known. Nothing was sent but the name of the user."""
    import asyncssh

    path = (ssh.known_hosts or KNOWN_HOSTS).expanduser()
    _, host, port = board.address()
    known = path.exists() and any(asyncssh.read_known_hosts(str(path)).match(host, "", port or PORT)[0])
    named = f"[{host}]:{port}" if port not in (None, PORT) else host
    if known:
        todo = (
            "Somebody may be in between. If the board was installed anew, compare the key's fingerprint on the board, "
            f"then: ssh-keygen -f {path} -R '{named}'"
        )
        return DeployError(explain(f"The host key of {named}", expected="the known one", found="another", todo=todo))
    todo = f"Log in once with ssh, compare the fingerprint, and let it write the key to {path}."
    return DeployError(
        explain(f"The host key of {named}", expected="one that is known", found=reason or "an unknown one", todo=todo)
    )


def _asyncssh() -> Any:
    try:
        import asyncssh
    except ImportError as error:
        todo = "pip install 'edge-sdk[deploy]'"
        raise DeployError(explain("SSH", expected="asyncssh", found=error, todo=todo)) from None
    asyncssh.set_log_level("WARNING")  # it tells each connection and channel at INFO
    return asyncssh
