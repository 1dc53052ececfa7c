"""A conversation with a model: what was said, the states after it, and the answers as they are made."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_sdk.answer import Completion, Stream
from edge_sdk.backends import States
from edge_sdk.errors import BackendError, ConfigError, EdgeError, MemoryLimitError, PromptError, explain
from edge_sdk.options import Options
from edge_sdk.sampling import Choice, Sampler
from edge_sdk.scheduler import Fed, Output
from edge_sdk.speculator import Counts
from edge_sdk.state_file import Conversation, write_state
from edge_sdk.text import Message
from edge_sdk.vision import Picture, take_images

if TYPE_CHECKING:
    from edge_sdk.language import LanguageModel
    from edge_sdk.structured import Constraint

Prompt = str | bytes | Sequence[Message]
Interrupted = Callable[[], object]
"""Whether no further step may begin."""


class Session:
    """One conversation. Also a context manager: its memory is freed at the end of the block.

    What the model reads is what its chat template makes of the whole conversation. Where that only adds to what was
    read before, only the new part is read; where the template takes back something, such as earlier reasoning, the
    conversation is read anew. A session is used by one thread at a time; :meth:`Stream.cancel` may come from any.
    """

    def __init__(
        self,
        model: LanguageModel,
        max_context: int | None = None,
        template: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> None:
        self.model, self.priority = model, priority
        self.template = dict(template or {})
        """What the chat template is given besides the messages."""
        self.max_context = min(max_context or model.engine.max_length, model.engine.max_length)
        """Longest conversation, in tokens."""
        if max_context is not None:
            model.engine.check_room(self.max_context)
        self.messages: list[Message] = []
        """What was said since :meth:`read` was last called."""
        self.cached_tokens = 0
        """Tokens of the last prompt that were known from earlier ones and not read again."""
        self._tokens: list[int] = []
        """Those that the states hold."""
        self._pending: list[int] = []
        """Tokens that were said but not fed yet."""
        self._texts = [""]
        """All that was read and answered, as text, in parts: an answer adds to a long one token by token."""
        self._preamble = ""
        """What of it the messages come after."""
        self._pictures: dict[str, Picture] = {}
        """The images that were shown, by name."""
        self._states: States | None = None
        """None before the first token."""
        self._speculator = model.speculator()
        self._answer: weakref.ref[Stream] | None = None
        """The last one, which may still run and refers to this session."""
        self._closed = False
        model.steps.join(priority)
        self._leave = weakref.finalize(self, model.steps.leave, priority)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends an answer that still runs and frees the memory; the session cannot be used any more."""
        self._end_answer()
        self._forget()
        self._leave()
        self._closed = True

    def _forget(self) -> None:
        if self._states is not None:
            self.model.steps.forget(self._states)
        if self._speculator is not None:
            self._speculator.forget(self.everything)
        self._states, self._tokens, self._pending = None, [], []

    @property
    def position(self) -> int:
        """Tokens that the states hold."""
        return len(self._tokens)

    def read(self, text: str | Sequence[int], pictures: Sequence[Picture] = ()) -> None:
        """Reads text, or token ids, as they are: no chat template, no answer. What is said later comes after it.

        ``pictures``: one for each of the text's image tokens, as ``model.sight.picture`` makes them. Raises PromptError
        where the context has no room for it.
        """
        self.append(text, pictures)
        self._feed("none", lambda: False, keep=1)  # the last one's logits are what an answer begins with

    def append(self, text: str | Sequence[int], pictures: Sequence[Picture] = ()) -> None:
        """As :meth:`read`, but what was added is not read before an answer begins. Raises PromptError."""
        self._check_open()
        ids = self.model.codec.encode(text) if isinstance(text, str) else self.model.prompts.known(text)
        expanded = self.model.prompts.expand(ids, pictures)
        self._check_room(len(self.everything) + len(expanded), answer=0)
        self._end_answer()
        self._pictures |= {picture.name: picture for picture in pictures}
        self._texts.append(text if isinstance(text, str) else self.model.codec.decode(ids))
        self._preamble, self.messages = self.text, []
        self._pending += expanded

    def stream(self, prompt: Prompt | None = None, options: Options | None = None, **changes: Any) -> Stream:
        """Adds a prompt to the conversation and answers it: a stream of tokens, which runs as it is iterated over.

        ``prompt``: what the user says, or messages; None goes on from where :meth:`read` or an answer stopped.
        ``changes``: single options, as ``max_new_tokens=100, temperature=0.7``. Raises PromptError for an empty prompt,
        one that is not UTF-8, or one longer than the context, and ConfigError for wrong options or a closed session.
        """
        self._check_open()
        chosen = (options or Options()).but(**changes) if changes else options or Options()
        started = time.monotonic()
        self._add(prompt)
        answer = Stream(self, chosen, started)
        self._answer = weakref.ref(answer)
        return answer

    def generate(self, prompt: Prompt | None = None, options: Options | None = None, **changes: Any) -> Completion:
        """As :meth:`stream`, all at once."""
        return self.stream(prompt, options, **changes).result()

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that a prompt would add to the conversation. Raises PromptError as :meth:`stream`."""
        self._add(prompt)
        return self._pending

    def prepare(self, prompt: Prompt | None = None, interrupted: Interrupted = lambda: False) -> None:
        """Adds a prompt to the conversation and reads it, so that an answer, ``stream()``, can begin at once.

        ``interrupted`` is asked before each step; what it leaves is read when an answer begins. Raises as
        :meth:`stream`.
        """
        self._check_open()
        self._add(prompt)
        self._feed("none", interrupted, keep=1)

    def fork(self) -> Session:
        """Another session that goes on from here."""
        self._check_open()
        states = self._memory().copy()
        other = Session(self.model, None, self.template, self.priority)
        other.max_context = self.max_context
        other.resume(list(self._tokens), states, self._conversation())
        other._pictures = dict(self._pictures)
        return other

    def save(self, path: str | Path) -> None:
        """Writes the session to a file, whole or not at all; :meth:`LanguageModel.restore` goes on from it.

        Raises OSError, such as for a full disk, and PromptError for an image that was not read yet.
        """
        self._check_open()
        if any(token_id < 0 for token_id in self._pending):
            message = explain("A session", expected="images that were read", found="one not yet", todo="Answer first.")
            raise PromptError(message)
        memory, model_id = self._memory().view(), self.model.bundle.model_id
        write_state(Path(path), model_id, self._tokens, memory, self._conversation())

    @property
    def speculation(self) -> Counts:
        """What drafting came to so far."""
        return Counts() if self._speculator is None else self._speculator.counts.copy()

    @property
    def text(self) -> str:
        """All that was read and answered, as the model sees it."""
        self._texts = ["".join(self._texts)]
        return self._texts[0]

    @property
    def everything(self) -> list[int]:
        """The conversation's token ids, those that are still to be fed included."""
        return self._tokens + self._pending

    @property
    def waiting(self) -> int:
        """How many tokens are still to be fed."""
        return len(self._pending)

    def begin_answer(self) -> None:
        """Notes that what comes is the model's; called by the stream."""
        self.messages.append({"role": "assistant", "content": ""})

    def next_choice(
        self, sampler: Sampler, interrupted: Interrupted, constraint: Constraint | None, room: int
    ) -> Choice | None:
        """Feeds what waits and chooses the token after it; None if it was interrupted. Called by the stream.

        ``room``: how many tokens the answer may still have, within which a constrained one is completed.
        """
        logits = None if interrupted() else self._speculate(constraint, room)
        greedy = constraint is None and sampler.takes_the_likeliest
        found = self._feed("token" if greedy else "logits", interrupted) if logits is None else logits
        if found is None:
            return None
        if greedy:
            choice = Choice(int(found if logits is None else found.argmax()))
        elif constraint is None:
            choice = sampler.choose(found)
        else:
            choice = sampler.choose_constrained(found, constraint, room)
        if self._speculator is not None:
            self._speculator.chose(choice.token_id)
        return choice

    def add_answered(self, token_id: int, text: str) -> None:
        """Adds to the conversation what the model said; called by the stream."""
        self._pending.append(token_id)
        self._texts.append(text)
        self.messages[-1]["content"] += text

    def _speculate(self, constraint: Constraint | None, room: int) -> np.ndarray | None:
        """The logits (vocab) after what waits, if a trial knows them or begins with it; None asks for a plain step."""
        speculator = self._speculator
        if speculator is None or len(self._pending) != 1:
            return None
        self._check_open()
        (token,) = self._pending
        logits = speculator.follow(token)
        if logits is None and not speculator.rests():
            states = self._memory()
            with self._lost_if_it_fails():
                logits = speculator.begin(self._tokens, token, states, constraint, room)
        if logits is not None:
            self._tokens.append(token)
            self._pending = []
        return logits

    def _end_answer(self) -> None:
        if self._answer is not None and (answer := self._answer()) is not None:
            answer.close()

    def _feed(self, wanted: Output, interrupted: Interrupted, keep: int = 0) -> Any:
        """Feeds what waits but for the last ``keep`` tokens, block by block; an interruption leaves the rest waiting.

        Returns what was wanted after the last token, or None where that was not fed.
        """
        marks = self._recall() if len(self._pending) > 1 else []
        result = None
        while (left := len(self._pending) - keep) > 0:
            self._check_open()
            if interrupted():
                return None
            block = min([left, self.model.steps.block(self.priority), *(mark - self.position for mark in marks[:1])])
            ids = self._pending[:block]
            result = self._advance(ids, wanted if block == len(self._pending) else "none")
            self._tokens += ids
            del self._pending[:block]
            if self.position in marks[:1]:
                self.model.remember(self._tokens, self._memory())
                del marks[0]
        return result

    def _advance(self, ids: list[int], wanted: Output) -> Any:
        """One step of the engine."""
        states = self._memory()
        with self._lost_if_it_fails():
            return self.model.steps.advance(self._embedded(ids), states, wanted, self.priority)

    @contextmanager
    def _lost_if_it_fails(self) -> Iterator[None]:
        """A failure within a step, Ctrl-C too, closes this session, whose states are lost."""
        try:
            yield
        except (PromptError, MemoryLimitError):  # refused before anything was fed
            raise
        except BaseException as error:
            self.close()
            if isinstance(error, EdgeError) or not isinstance(error, Exception):
                raise
            raise BackendError(
                explain("A step of the model", expected="to run", found=error, todo="Open a new session.")
            ) from error

    def _embedded(self, ids: list[int]) -> Fed:
        """The next tokens, or their embeddings where there are images among them."""
        if self.model.sight is None or min(ids) >= 0:
            return ids
        start = self.position
        return self.model.sight.embed(self.everything, start, start + len(ids), self._pictures.values())

    def _memory(self) -> States:
        if self._states is None:
            self._states = self.model.steps.empty_states()
        if self._speculator is not None:
            with self._lost_if_it_fails():
                self._speculator.settle(self._states)
        return self._states

    def _recall(self) -> list[int]:
        """Takes over the longest known beginning of what waits, if nothing was fed yet.

        Returns the positions whose states are worth remembering.
        """
        prefixes, start = self.model.prefixes, self.position
        if prefixes is None:
            return []
        ids = self.everything
        if start == 0 and (snapshot := prefixes.longest(ids)) is not None:
            self._states = self.model.steps.load_states(snapshot)
            self.cached_tokens = start = snapshot.length
            self._tokens, self._pending = ids[:start], ids[start:]
        return [mark for mark in prefixes.plan(ids, start) if ids[mark - 1] >= 0 or ids[mark] >= 0]  # not in an image

    def _conversation(self) -> Conversation:
        return Conversation(
            messages=[dict(message) for message in self.messages],
            pending=list(self._pending),
            text=self.text,
            preamble=self._preamble,
            template=self.template,
        )

    def resume(self, token_ids: list[int], states: States, conversation: Conversation) -> None:
        """Goes on from what another session said and read."""
        self._tokens, self._states, self.messages = token_ids, states, cast(list[Message], conversation.messages)
        self._pending, self._texts = conversation.pending, [conversation.text]
        self._preamble, self.template = conversation.preamble, conversation.template

    def _add(self, prompt: Prompt | None) -> None:
        """Puts a prompt's tokens among those that are to be fed. Raises PromptError, and changes nothing then."""
        if prompt is None:
            if not self._pending:
                raise PromptError(
                    explain("The prompt", expected="one", found="none, and nothing was read", todo="Say something.")
                )
            self._check_room(len(self.everything))
            self._end_answer()
            return
        prompts = self.model.prompts
        added, pictures = take_images(self.model.codec.messages(prompt), self.model.sight)
        pictures = {**self._pictures, **pictures}
        messages = [*self.messages, *cast("list[Message]", added)]
        text = self._preamble + prompts.render(messages, self.template)
        said = self.everything
        new = prompts.continuation(text, (self.text, said), added, messages, pictures)
        if new is None:
            said, new = [], prompts.encode(text, messages, pictures)
        self._check_room(len(said) + len(new))
        self._end_answer()
        self._pictures = pictures
        if not said:
            self._forget()
        self.messages, self._texts, self.cached_tokens = messages, [text], 0
        self._pending += new

    def _check_room(self, tokens: int, answer: int = 1) -> None:
        """Whether so many tokens, and an answer of so many, fit the context."""
        if tokens + answer > self.max_context:
            raise PromptError(
                explain(
                    "The prompt",
                    expected=f"with all turns at most {self.max_context - answer} tokens "
                    f"(the context holds {self.max_context})",
                    found=f"{tokens} tokens",
                    todo="Shorten it or open a new session.",
                )
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError(explain("The session", expected="an open one", found="closed", todo="Open a new one."))
