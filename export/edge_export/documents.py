"""Training data of any size: text, JSONL and parquet are read document by document and kept as tokens on disk.

Each document is cut into samples that begin from empty states. Batches are made of samples of similar lengths, so that
little is padded, or of packed ones (``data.Batches``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_export.data import Sample, StoredSamples
from edge_export.extras import imported
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_directory, sha256
from edge_sdk.text import TEMPLATE_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE, Message, TextCodec

SUFFIXES = (".txt", ".jsonl", ".parquet")

FORMS = 'a "text", a "prompt" and its "completion", or "messages"'

PARQUET_ROWS = 256
"""Read at once."""


class Pair(msgspec.Struct, frozen=True):
    """A prompt and what is to follow it."""

    prompt: str
    completion: str


class Record(msgspec.Struct, frozen=True):
    """A line of a JSONL file or a row of a parquet file, of one of three forms: what it has besides is ignored."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: list[Message] | None = None

    def __post_init__(self) -> None:
        pair = (self.prompt is not None, self.completion is not None)
        if [self.text is not None, all(pair), self.messages is not None].count(True) != 1 or any(pair) != all(pair):
            raise ValueError(f"it needs {FORMS}")


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, or of a folder's files by name; a .txt file is one text.

    Raises ConfigError naming the file and line that cannot be read.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in SUFFIXES and file.is_file()]
    if not files:
        expected, found = f"{', '.join(SUFFIXES)} files", "none" if path.exists() else "nothing of that name"
        raise ConfigError(explain(str(path), expected=expected, found=found, todo="Name other data."))
    for file in files:
        if file.suffix == ".txt":
            yield Record(text=file.read_text(encoding="utf-8", errors="replace"))
        else:
            for number, row in enumerate(_rows(file), start=1):
                yield _record(row, f"{file}, line {number}")


def _rows(path: Path) -> Iterator[bytes | dict[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open("rb") as lines:
        yield from lines


def _record(row: bytes | dict[str, Any], where: str) -> Record:
    try:
        if isinstance(row, bytes):
            return msgspec.json.decode(row, type=Record)
        return msgspec.convert(row, Record)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ConfigError(explain(where, expected=FORMS, found=error, todo="Correct it.")) from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    pyarrow = imported("pyarrow.parquet", extra="parquet", needed_by=str(path))
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in Record.__struct_fields__ if name in file.schema_arrow.names]
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(explain(str(path), expected="a parquet file", found=error, todo="Copy it again.")) from None


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a file. Raises ConfigError as :func:`read_records`, and for what is no pair."""
    pairs = []
    for number, record in enumerate(read_records(path), start=1):
        if record.prompt is None or record.completion is None:
            raise ConfigError(
                explain(f"{path}, record {number}", expected="a pair", found="another form", todo="Correct it.")
            )
        pairs.append(Pair(record.prompt, record.completion))
    return pairs


def tokenize(pairs: Sequence[Pair], codec: TextCodec, end: int) -> list[Sample]:
    """Each pair as prompt (through the chat template), completion and the end token."""
    return [_answer(codec.encode_prompt(pair.prompt), pair.completion, codec, end) for pair in pairs]


def _answer(prompt: list[int], completion: str, codec: TextCodec, end: int) -> Sample:
    return Sample((*prompt, *codec.encode(completion), end), len(prompt))


def samples_of(record: Record, codec: TextCodec, end: int, length: int | None) -> Iterator[Sample]:
    """What is learnt from a record: a text's pieces, a pair, or each answer of a conversation after all before it.

    With ``length``, texts are cut into pieces of so many tokens to be learnt, answers lose what is behind as many
    tokens, and those whose prompts are longer are left out.
    """
    if record.text is not None:
        ids = (*codec.encode(record.text), end)
        yield from cut(ids, length or len(ids))
        return
    if record.messages is not None:
        messages = record.messages
        turns = [turn for turn, message in enumerate(messages) if turn and message["role"] == "assistant"]
        answers = [(messages[:turn], messages[turn]["content"]) for turn in turns]
        found = [_answer(codec.encode_prompt(before), answer, codec, end) for before, answer in answers]
    else:
        assert record.prompt is not None
        assert record.completion is not None
        found = tokenize([Pair(record.prompt, record.completion)], codec, end)
    for sample in found:
        if length is None or sample.prompt_length <= length:
            yield sample if length is None else Sample(sample.ids[: length + 1], sample.prompt_length)


def cut(ids: Sequence[int], length: int) -> list[Sample]:
    """A document's tokens as samples of ``length`` + 1 tokens, of which all but the first are learnt.

    Each begins with the last token of the one before, so that every token but the document's first is learnt once, and
    from empty states: no state and no attention crosses a document's end, or a sample's.
    """
    starts = range(0, max(len(ids) - 1, 0), length)
    return [Sample(tuple(ids[start : start + length + 1]), 1) for start in starts]


def store_samples(
    path: Path, tokenizer: Path, folder: Path, *, end: int, vocab_size: int, length: int | None = None
) -> StoredSamples:
    """Tokenises a file or folder into ``folder``, one record in memory at a time; kept while nothing changes.

    Raises ConfigError for what cannot be read, and where nothing is to be learnt.
    """
    facts = {"key": data_key(path, tokenizer, end, length), "type": "uint16" if vocab_size <= 1 << 16 else "uint32"}
    note = folder / "samples.json"
    if not note.exists() or json.loads(note.read_text()) != facts:
        codec = TextCodec(tokenizer)
        with new_directory(folder) as new:
            samples = (sample for record in read_records(path) for sample in samples_of(record, codec, end, length))
            if not _write(samples, new, np.dtype(facts["type"])):
                raise ConfigError(explain(str(path), expected="something to learn", found="nothing", todo="Give more."))
            (new / note.name).write_text(json.dumps(facts))
    return StoredSamples(folder)


def _write(samples: Iterable[Sample], folder: Path, dtype: np.dtype[Any]) -> int:
    """Writes the samples and returns their number."""
    starts, prompts = [0], []
    with (folder / "tokens").open("wb") as tokens:
        for sample in samples:
            tokens.write(np.array(sample.ids, dtype).tobytes())
            starts.append(starts[-1] + len(sample.ids))
            prompts.append(sample.prompt_length)
    np.array(starts, np.int64).tofile(folder / "starts.i64")
    np.array(prompts, np.int32).tofile(folder / "prompts.i32")
    return len(prompts)


def data_key(path: Path, tokenizer: Path, end: int, length: int | None) -> str:
    """Changes with the data, the tokenizer, and how long samples are."""
    digest = hashlib.sha256(f"{end} {length}".encode())
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in [*files, *(tokenizer / name for name in (TOKENIZER_FILE, TOKENIZER_CONFIG, TEMPLATE_FILE))]:
        if file.is_file():
            digest.update(f"{file.name} {sha256(file)}".encode())
    return digest.hexdigest()
