"""What the commands that train share: options, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import torch
import typer
from rich.table import Table

from edge_export.data import Sample
from edge_export.distributed import first_before_others
from edge_export.documents import read_pairs, store_samples, tokenize
from edge_export.terminal import console
from edge_sdk.errors import ConfigError, explain
from edge_sdk.files import new_file
from edge_sdk.model import ModelConfig
from edge_sdk.text import TextCodec

Data = Annotated[
    Path,
    typer.Option(
        help="What to learn from: .txt, .jsonl, .parquet or a folder of them. A record has a text, "
        "a prompt and its completion, or the messages of a conversation. Of a policy: episodes."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the run: checkpoint, log.csv, loss.png and the model.")]
Test = Annotated[Optional[Path], typer.Option(help="Held-out pairs in JSONL, or episodes: report the scores on them.")]
Threads = Annotated[Optional[int], typer.Option(help="Threads for torch; all cores if left out.")]
Length = Annotated[Optional[int], typer.Option(min=2, help="Longest sample in tokens; texts are cut into such pieces.")]
Device = Annotated[str, typer.Option(help="Where torch computes: cpu or cuda.")]
TensorBoard = Annotated[bool, typer.Option(help="Also write events for TensorBoard.")]


def set_threads(threads: int | None) -> None:
    """Limits torch to so many threads."""
    if threads is not None:
        torch.set_num_threads(threads)


def torch_device(name: str) -> torch.device:
    """Where torch computes. Raises ConfigError for a device that it does not have here."""
    if name != "cpu" and not (name.partition(":")[0] == "cuda" and torch.cuda.is_available()):
        expected = "cpu or cuda" if torch.cuda.is_available() else "cpu, as torch sees no GPU here"
        raise ConfigError(explain("--device", expected=expected, found=name, todo="Choose another."))
    return torch.device(name)


def end_token(config: ModelConfig) -> int:
    """What stands behind a text or an answer. Raises ConfigError for a model without such a token."""
    if not config.eos_token_ids:
        raise ConfigError(explain("The model", expected="an eos_token_id", found="none", todo="Add it to config.json."))
    return config.eos_token_ids[0]


def pairs(path: Path, tokenizer: Path, config: ModelConfig) -> list[Sample]:
    """Tokenised pairs, all in memory."""
    return tokenize(read_pairs(path), TextCodec(tokenizer), end_token(config))


def stored_samples(path: Path, tokenizer: Path, out: Path, config: ModelConfig, length: int | None) -> Sequence[Sample]:
    """The samples of a data set, tokenised into the run's folder by the first process."""
    with first_before_others():
        return store_samples(
            path, tokenizer, out / "data", end=end_token(config), vocab_size=config.vocab_size, length=length
        )


def write_report(values: dict[str, object], out: Path) -> None:
    """Writes report.json and shows it."""
    with new_file(out / "report.json") as path:
        path.write_text(json.dumps(values, indent=2) + "\n")
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else f"{value}")
    console.print(table)
