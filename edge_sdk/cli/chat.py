"""``edge-sdk chat``: a conversation in a terminal, or over a pipe, a line for each turn."""

from __future__ import annotations

import argparse
import itertools
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from edge_sdk.answer import Completion, Stream
from edge_sdk.chat_format import ReasoningText
from edge_sdk.cli.arguments import Commands, add_answer, add_engine, answer_options, load
from edge_sdk.errors import ConfigError, EdgeError, explain
from edge_sdk.language import LanguageModel
from edge_sdk.options import Options
from edge_sdk.session import Session
from edge_sdk.text import Message

PROMPT = "> "
PASTE_S = 0.02
"""Lines that come so soon after one another were pasted."""
DIM, PLAIN = "\033[2m", "\033[0m"
HELP = """\
/system TEXT   begin anew with this system message
/reset         begin anew
/save FILE     keep the conversation, with what the model remembers of it
/load FILE     go on from there
/stats         what the last answer took
/exit          end, as Ctrl-D does
Ctrl-C ends an answer. A line that ends in a backslash goes on in the next one; pasted lines belong together."""


def add_commands(commands: Commands) -> None:
    """Adds ``chat``."""
    chat = commands.add_parser("chat", help="talk to a bundle")
    add_engine(chat)
    add_answer(chat)
    chat.set_defaults(command=_chat)


def _chat(arguments: argparse.Namespace) -> int:
    options = answer_options(arguments)
    chat = Chat(load(arguments), options, arguments.system)
    terminal = sys.stdin.isatty()
    if terminal:
        _prepare_line_editing()
        print("/help says what can be done.")
    for text in _turns(terminal):
        if not chat.take(text):
            break
    return 0


class Chat:
    """One conversation and its commands."""

    def __init__(self, model: LanguageModel, options: Options, system: str | None) -> None:
        self._model, self._options, self._system = model, options, system
        self._session: Session = model.session()
        self._last: Completion | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/system": self._begin_with,
            "/reset": lambda _: self._begin_with(self._system),
            "/save": self._save,
            "/load": self._load,
            "/stats": lambda _: print(self._stats()),
            "/help": lambda _: print(HELP),
        }

    def take(self, text: str) -> bool:
        """Answers what was said, or does what was asked for; whether to go on."""
        command, _, argument = text.strip().partition(" ")
        if command == "/exit":
            return False
        try:
            if command in self._commands:
                self._commands[command](argument.strip())
            elif command.startswith("/"):
                print(f"{command} is unknown, /help says what is not")
            elif command:
                self._answer(text.strip())
        except (EdgeError, OSError) as error:  # such as a file that cannot be written
            print(f"error: {error}", file=sys.stderr)
        return True

    def _answer(self, text: str) -> None:
        messages: list[Message] = [{"role": "user", "content": text}]
        if self._system and not self._session.messages:
            messages.insert(0, {"role": "system", "content": self._system})
        stream = self._session.stream(messages, self._options)
        with _interrupting(stream):
            self._show(stream)
            self._last = stream.result()
        print(" [interrupted]" if self._last.finish_reason == "cancelled" else "")

    def _show(self, stream: Stream) -> None:
        """Prints tokens as they come, reasoning dimmed."""
        parser, color = self._model.codec.format.parser(self._session.text), sys.stdout.isatty()
        dim = False
        for token in itertools.chain(stream, [None]):
            for event in parser.finish() if token is None else parser.feed(token.text):
                thinking = isinstance(event, ReasoningText)
                if color and thinking != dim:
                    print(DIM if thinking else PLAIN + "\n", end="")
                    dim = thinking
                print(getattr(event, "text", ""), end="", flush=True)
        if dim:
            print(PLAIN, end="", flush=True)

    def _begin_with(self, system: str | None) -> None:
        self._session.close()
        self._session, self._system, self._last = self._model.session(), system or None, None

    def _save(self, path: str) -> None:
        self._session.save(_named(path))
        print(f"saved {self._session.position} tokens to {path}")

    def _load(self, path: str) -> None:
        restored = self._model.restore(_named(path))
        self._session.close()
        self._session, self._last = restored, None
        print(f"loaded {restored.position} tokens from {path}")

    def _stats(self) -> str:
        context = f"{self._session.position} of {self._session.max_context} tokens of context"
        if self._last is None:
            return context
        last = self._last
        return (
            f"{context}; last prompt {last.prompt_tokens} tokens ({last.cached_tokens} known), "
            f"first token after {last.time_to_first_token_ms:.1f} ms, "
            f"{len(last.token_ids)} tokens at {last.tokens_per_second:.1f}/s ({last.finish_reason}){self._drafts()}"
        )

    def _drafts(self) -> str:
        counts = self._session.speculation
        return f"; {counts.accepted} of {counts.drafted} drafted tokens were right" if counts.drafted else ""


def _named(path: str) -> str:
    if not path:
        raise ConfigError(explain("The command", expected="a file's name", found="none", todo="Give one."))
    return path


@contextmanager
def _interrupting(stream: Stream) -> Iterator[None]:
    """Lets SIGINT end the answer between two steps, and nothing else."""

    def cancel(_: int, __: FrameType | None) -> None:
        stream.cancel()

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _prepare_line_editing() -> None:
    """Arrow keys, history, and pasted lines kept together, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    readline.parse_and_bind("set enable-bracketed-paste on")


def _turns(terminal: bool) -> Iterator[str]:
    """What is said, turn by turn, up to the end of the input."""
    while True:
        try:
            lines = [input(PROMPT if terminal else "")]
            while lines[-1].endswith("\\") or (terminal and select.select([sys.stdin], [], [], PASTE_S)[0]):
                lines[-1] = lines[-1].removesuffix("\\")
                lines.append(input())
        except EOFError:
            print(end="\n" if terminal else "")
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
            continue
        yield "\n".join(lines)
