"""A drafting head that is trained on a model's own hidden states, while the model stays as it is.

The head has the form of Nemotron 3's (``torch_model.MtpHead``). In use it drafts several tokens in a row, each from the
hidden state that it made with the one before; so it is trained on its own hidden states too, with the same weights in
every round, as FastMTP does (arXiv 2509.18362), and attends in each to what it sees in use, as EAGLE-3 does (arXiv
2503.01840, "training-time test").
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from edge_export.data import Batch, Batches, Sample, collate
from edge_export.families import family_of
from edge_export.teacher import similar_lengths
from edge_export.torch_layers import States
from edge_export.torch_model import HybridLM, MtpHead
from edge_export.training import Schedule, Trainer
from edge_sdk.errors import ConfigError, explain
from edge_sdk.model import ModelConfig, MtpSpec

log = logging.getLogger("edge_export")


class HeadSchedule(Schedule, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A schedule with what a drafting head learns."""

    drafts: int = 4
    """Tokens in a row that it learns to draft."""
    data_weight: float = 0.0
    """Share of the data's own cross-entropy in the loss; the rest is the divergence from what the model says itself,
    which is what decides whether a draft is kept."""

    def __post_init__(self) -> None:
        if self.drafts < 1 or not 0 <= self.data_weight <= 1:
            found = f"drafts: {self.drafts}, data_weight: {self.data_weight}"
            expected = "drafts of 1 or more, data_weight of 0 to 1"
            raise ConfigError(explain("The schedule", expected=expected, found=found, todo="Correct it."))
        if self.packing:
            todo = "Leave it out: drafts are learnt sample by sample."
            raise ConfigError(explain("packing", expected="false for a drafting head", found="true", todo=todo))


def head_spec(config: ModelConfig, letters: str | None = None) -> MtpSpec:
    """The drafting head that a model has or may get: layers like the model's own, in the letters of its pattern.

    Raises ConfigError for a model whose family has no drafting heads, for letters of layers that the model does not
    have or that remember more than a cache, and for a model that has another head already.
    """
    own = {ModelConfig.LETTERS[spec.kind]: spec for spec in config.layers}
    own = {letter: own[letter] for letter in "*E-" if letter in own}
    usual = "".join(own)[:2]
    if config.mtp is not None:
        usual = "".join(ModelConfig.LETTERS[spec.kind] for spec in config.mtp.layers)
        if letters not in (None, usual):
            todo = "Leave `layers` out to train the checkpoint's own head on."
            raise ConfigError(explain("layers", expected=f"{usual}, as the model's head", found=letters, todo=todo))
        return config.mtp
    letters = usual if letters is None else letters
    if not letters or set(letters) - own.keys():
        expected = f"some of {', '.join(own)}, which the model has" if own else "a model with other layers than Mamba-2"
        todo = "Choose others." if own else "Draft by lookup."
        raise ConfigError(explain("layers of the drafting head", expected=expected, found=letters or "none", todo=todo))
    spec = MtpSpec(layers=tuple(own[letter] for letter in letters))
    if not _can_have(config, spec):
        todo = "There is no place for one in its checkpoints; draft by lookup."
        raise ConfigError(
            explain("The model", expected="a family with drafting heads, as nemotron_h", found=config.family, todo=todo)
        )
    return spec


def _can_have(config: ModelConfig, head: MtpSpec) -> bool:
    """Whether a checkpoint of the model can say that it has the head."""
    if config.policy is not None or config.vision is not None:
        return False
    family = family_of({"model_type": config.family})
    raw = family.format_config(msgspec.structs.replace(config, mtp=head))
    return bool(family.parse_config(raw).mtp == head)


def warn_of_stale_head(config: ModelConfig) -> None:
    """For trainings of a model, which leave its drafting head as it is."""
    if config.mtp is not None:
        log.warning(
            "the drafting head was not trained along, and drafts for a model that was another: train it with "
            "`edge-export head`"
        )


class Draft(NamedTuple):
    """What the head drafts at all positions that count, whichever number in a row it is."""

    logits: Tensor
    """Its own (targets, vocab)."""
    models: Tensor
    """The model's logits (targets, vocab) of the same tokens."""
    targets: Tensor
    """These tokens in the data (targets)."""


def drafts_of(model: HybridLM, batch: Batch, count: int) -> Iterator[Draft]:
    """The first draft everywhere, the second ones that follow it, and so on; fewer for shorter samples.

    Drafts count where they follow a token of the answer, as in use; the tokens between are the data's.
    """
    with torch.no_grad():
        hidden = model.hidden_states(batch.input_ids)
    state = hidden
    rounds: list[States] = []
    for ahead in range(1, min(count, batch.input_ids.shape[1] - 1) + 1):
        state, rounds = model.mtp(state[:, :-1], model.embed(batch.input_ids[:, ahead:]), rounds)
        targets = batch.targets[:, ahead:]
        counted = batch.counted[:, ahead:] & batch.counted[:, :-ahead]
        with torch.no_grad():
            expected = model.head(hidden[:, ahead:][counted]).float()
        yield Draft(model.head(state[counted]).float(), expected, targets[counted])


class HeadLoss:
    """How far a model's drafting head is from what the model says, per draft."""

    def __init__(self, model: HybridLM, schedule: HeadSchedule) -> None:
        self._model, self._schedule = model, schedule

    def __call__(self, head: MtpHead, batch: Batch) -> Tensor:
        """``head`` is the model's."""
        share, count = self._schedule.data_weight, 0
        total = torch.zeros((), device=batch.targets.device, requires_grad=True)  # where all samples are too short
        for draft in drafts_of(self._model, batch, self._schedule.drafts):
            if share < 1:
                total = total + (1 - share) * self._model.moved(draft.logits, draft.models)
            if share > 0:
                total = total + share * torch.nn.functional.cross_entropy(draft.logits, draft.targets, reduction="sum")
            count += len(draft.targets)
        return total / max(1, count)


def train_head(
    model: HybridLM,
    samples: Sequence[Sample],
    schedule: HeadSchedule,
    out: Path,
    *,
    letters: str | None = None,
    given: Mapping[str, str] = MappingProxyType({}),
    tensorboard: bool = False,
) -> HybridLM:
    """Trains the model's drafting head, or a new one (see :func:`head_spec`); nothing else of the model changes.

    Goes on where it stopped, if what is ``given`` (see Trainer) is the same. Raises ConfigError as head_spec does.
    """
    spec = head_spec(model.config, letters)
    if model.config.mtp is None:
        model.add_head(spec)
        model.mtp.reset_parameters(schedule.seed)
        model.mtp.to(model.norm_f.weight.device)
    model.eval().requires_grad_(False)
    model.mtp.requires_grad_(True)
    batches, loss = Batches(samples, schedule.batch_size, schedule.seed), HeadLoss(model, schedule)
    Trainer(model.mtp, batches, schedule, out, loss, "head", tensorboard=tensorboard, given=given).run()
    return model


@torch.inference_mode()
def drafts_right(model: HybridLM, samples: Sequence[Sample], count: int) -> list[float]:
    """For each of ``count`` drafts in a row the share that is what the model finds likeliest itself.

    The tokens before a draft are the data's. NaN where no sample is long enough.
    """
    right, seen = torch.zeros(count), torch.zeros(count)
    for indices in similar_lengths(samples):
        batch = collate(samples, indices).to(model.device)
        for index, draft in enumerate(drafts_of(model, batch, count)):
            right[index] += (draft.logits.argmax(-1) == draft.models.argmax(-1)).sum().cpu()
            seen[index] += len(draft.targets)
    return (right / seen).tolist()
