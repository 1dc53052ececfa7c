"""Language inference: load a bundle, open a session, stream tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk.answer import Completion
from edge_sdk.backends import Engine, States, choose_engine
from edge_sdk.bundle import Bundle
from edge_sdk.drafting import History
from edge_sdk.errors import BundleError, ImageError, explain
from edge_sdk.model import ModelConfig
from edge_sdk.options import Options
from edge_sdk.pace import Acceptance
from edge_sdk.prefix_cache import DiskStore, PrefixCache
from edge_sdk.prompt_codec import PromptCodec
from edge_sdk.scheduler import Direct, Scheduler
from edge_sdk.session import Prompt, Session
from edge_sdk.speculation import Speculation
from edge_sdk.speculator import Speculator
from edge_sdk.state_file import Conversation, read_state, write_state
from edge_sdk.structured import GrammarCompiler
from edge_sdk.text import TextCodec
from edge_sdk.vision import Sight

PREFIX_CACHE_BYTES = 256 << 20

log = logging.getLogger("edge_sdk")


class LanguageModel:
    """A loaded bundle; makes sessions."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        prefixes: PrefixCache | None = None,
        steps: Direct | Scheduler | None = None,
        speculation: Speculation = "auto",
    ) -> None:
        """``prefixes``: what is known of earlier prompts; None reads every prompt anew.

        ``steps``: who may use the engine next; None lets sessions take turns by step. ``speculation``: what drafts
        tokens, where the engine can verify some.
        """
        self.bundle, self.engine, self.prefixes = bundle, engine, prefixes
        self.steps = steps or Direct(engine)
        self.config: ModelConfig = bundle.manifest.model
        self.codec = TextCodec(bundle.path)
        self.sight = None if self.config.vision is None else Sight(self.config.vision, engine, self.codec)
        """How it sees; None where it reads text only."""
        self.prompts = PromptCodec(self.codec, self.sight, self.config.vocab_size)
        self._speculation, self._acceptance, self._history = speculation, Acceptance(), History()

    def session(
        self, max_context: int | None = None, template: Mapping[str, Any] | None = None, *, priority: int = 0
    ) -> Session:
        """A new conversation of at most ``max_context`` tokens, or as many as the model takes.

        Memory is taken as the context grows. Of ``max_context`` tokens it must be free now; MemoryLimitError is raised
        where it is not, and later, before a step, where it was used up meanwhile: docs/long_context.md.

        ``template``: what the chat template is given besides the messages, such as ``tools`` and ``enable_thinking``.

        Of sessions that want a step at the same time the ones with the highest ``priority`` get it.
        """
        return Session(self, max_context, template, priority)

    def speculator(self) -> Speculator | None:
        """What drafts tokens for one session; None where nothing does."""
        if self.engine.times is None or self._speculation == "off":
            return None
        return Speculator(self.steps, self.engine.times, self._acceptance, self._history, self._speculation)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Makes grammars into constraints. Raises ConfigError where the tokenizer or the installation has none."""
        return GrammarCompiler(self.codec.tokenizer, self.config.eos_token_ids)

    def restore(self, path: str | Path, max_context: int | None = None, *, priority: int = 0) -> Session:
        """The session that :meth:`Session.save` wrote. Raises StateError for a damaged file or another model's."""
        header, token_ids, snapshot = read_state(Path(path), self.bundle.model_id, self.config)
        session = Session(self, max_context, priority=priority)
        session.resume(token_ids, self.steps.load_states(snapshot), header.conversation)
        return session

    def generate(self, prompt: Prompt, options: Options | None = None, **changes: Any) -> Completion:
        """Answers one prompt in a session of its own. Raises as :meth:`Session.stream`."""
        with self.session() as session:
            return session.generate(prompt, options, **changes)

    def alternatives(
        self, prompt: Prompt, count: int, options: Options | None = None, **changes: Any
    ) -> list[Completion]:
        """Several answers to one prompt, which is read once; with a seed, each has the next one.

        Raises as :meth:`Session.stream`.
        """
        chosen = (options or Options()).but(**changes)
        with self.session() as session:
            session.prepare(prompt)
            answers = []
            for index in range(count):
                with session.fork() as fork:
                    answers.append(fork.generate(None, chosen.numbered(index)))
            return answers

    def generate_batch(self, prompts: Sequence[Prompt], max_new_tokens: int = 256) -> list[str]:
        """Greedy answers to many prompts; those of equal length run side by side. Raises PromptError."""
        groups: dict[int, list[tuple[int, list[int]]]] = {}
        for index, prompt in enumerate(prompts):
            with self.session() as session:
                ids = session.encode(prompt)
            if min(ids) < 0:
                raise ImageError(explain("A batch", expected="text", found="an image", todo="Use sessions."))
            groups.setdefault(len(ids), []).append((index, ids))
        answers = [""] * len(prompts)
        for length, group in groups.items():
            budget = min(max_new_tokens, self.engine.max_length - length)
            with self.steps.exclusive():
                rows = greedy_batch(self.engine, np.array([ids for _, ids in group]), budget, self.config.eos_token_ids)
            for (index, _), row in zip(group, rows):
                answers[index] = self.codec.decode(row)
        return answers

    def remember(self, token_ids: Sequence[int], states: States) -> None:
        """Keeps the states after these tokens for later prompts that begin with them."""
        if self.prefixes is not None and self.config.state_bytes(1, len(token_ids)) <= self.prefixes.max_bytes:
            try:
                with self.steps.exclusive():
                    snapshot = states.snapshot()
            except MemoryError as error:
                log.warning("a beginning of a prompt is not remembered: %s", error)
                return
            self.prefixes.add(token_ids, snapshot)


def prefill(engine: Engine, ids: np.ndarray, states: States) -> np.ndarray:
    """Advances the states over ids (batch, length) block by block; returns the likeliest next tokens (batch)."""
    last = (ids.shape[1] - 1) // engine.prefill_block * engine.prefill_block
    for start in range(0, last, engine.prefill_block):
        engine.step(ids[:, start : start + engine.prefill_block], states, logits="none")
    return engine.next_tokens(ids[:, last:], states)


def greedy_batch(engine: Engine, ids: np.ndarray, max_new_tokens: int, ends: Sequence[int]) -> list[list[int]]:
    """Greedy continuations of ids (batch, length), each cut before its first end token."""
    states = engine.empty_states(len(ids))
    tokens = prefill(engine, ids, states)
    columns, ended = [], np.zeros(len(ids), dtype=bool)
    for _ in range(max_new_tokens):
        columns.append(tokens)
        ended |= np.isin(columns[-1], ends)
        if ended.all() or len(columns) == max_new_tokens:
            break
        tokens = prefill(engine, tokens[:, None], states)
    rows = np.stack(columns, axis=1)
    stops = np.isin(rows, ends)
    lengths = np.where(stops.any(1), stops.argmax(1), rows.shape[1])
    return [row[:length].tolist() for row, length in zip(rows, lengths)]


def load(
    path: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    verify_hashes: bool = True,
    prefix_cache_bytes: int = PREFIX_CACHE_BYTES,
    prefix_cache_folder: str | Path | None = None,
    slots: int = 1,
    waiting: int = 16,
    max_state_bytes: int | None = None,
    speculation: Speculation = "auto",
    profile: str | Path | None = None,
) -> LanguageModel:
    """Opens and checks a bundle and prepares an engine for it.

    ``device``: ``auto``, ``cpu``, ``cuda`` or ``tensorrt``. ``threads``: of the engine, all cores if None.
    ``verify_hashes``: compare every file's content with the manifest's hash, a file that was compared before and not
    written since by its times alone; without, only names and sizes.
    ``prefix_cache_bytes``: memory for the states after beginnings of prompts; 0 keeps none.
    ``prefix_cache_folder``: where they outlast the process, up to eight times as many bytes.
    ``slots``: answers that may be made at the same time, step by step together; with 1, sessions take turns by step
    and none waits for a place. ``waiting``: how many more may wait for a slot before BusyError is raised.
    ``max_state_bytes``: memory for the states of all sessions; as much as the machine has left if None. A session that
    needs more raises MemoryLimitError.
    ``speculation``: what drafts tokens, which the model then verifies together (docs/speculation.md): ``auto`` is
    whatever pays, and nothing where the bundle was not exported for it; ``lookup`` are earlier occurrences of the last
    tokens, ``head`` is the model's own head, and both are refused where they are not possible; ``off`` is nothing.
    ``profile``: how the name of a trace begins, for :mod:`edge_sdk.profile`; ``engine.end_profile()`` completes it. It
    is a trace of plain steps, without drafts.
    Raises BundleError for a damaged bundle, or one that is replaced meanwhile, BackendError where no engine can run it,
    and ConfigError where it cannot speculate as asked for.
    """
    bundle = Bundle.open(path, verify_hashes=verify_hashes, remember=True)
    if bundle.manifest.model.policy is not None:
        todo = "Use edge_sdk.load_policy."
        raise BundleError(explain(str(path), expected="a language model", found="a policy", todo=todo))
    trace = None if profile is None else Path(profile)
    engine = choose_engine(bundle, device=device, threads=threads, profile=trace, speculation=speculation)
    if max_state_bytes is not None:
        engine.limit_states(max_state_bytes)
    prefixes = None
    if prefix_cache_bytes:
        disk = (
            None if prefix_cache_folder is None else _disk_store(bundle, Path(prefix_cache_folder), prefix_cache_bytes)
        )
        prefixes = PrefixCache(prefix_cache_bytes, disk=disk)
    model = LanguageModel(bundle, engine, prefixes, _steps(engine, slots, waiting), speculation)
    bundle.check_still_there()
    return model


def _steps(engine: Engine, slots: int, waiting: int) -> Direct | Scheduler:
    if slots > 1 and engine.has_rows:
        return Scheduler(engine, slots, waiting)
    if slots > 1:
        log.warning("sessions take turns by step instead of being stepped together: %s cannot do that", engine.name)
    return Direct(engine)


def _disk_store(bundle: Bundle, folder: Path, memory_bytes: int) -> DiskStore:
    model_id = bundle.model_id
    return DiskStore(
        folder / model_id[:16],
        8 * memory_bytes,
        write=lambda path, token_ids, snapshot: write_state(path, model_id, token_ids, snapshot, Conversation()),
        read=lambda path: read_state(path, model_id, bundle.manifest.model)[1:],
    )
