"""What the commands that train read: a recipe's model, the data it learns from, and held-out data to judge it by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_export.command_options import pairs, stored_samples
from edge_export.episode_batches import EpisodeSettings
from edge_export.episodes import open_episodes
from edge_export.evaluate import exact_match
from edge_export.families import family_of, policy
from edge_export.lessons import EpisodeLessons, Lessons, TokenLessons
from edge_export.policy_evaluate import action_errors
from edge_export.torch_model import HybridBody, HybridLM
from edge_export.torch_policy import HybridPolicy
from edge_sdk.errors import ConfigError, explain
from edge_sdk.instruction import InstructionCodec
from edge_sdk.model import ModelConfig
from edge_sdk.policy_spec import PolicySpec

DEFAULTS = EpisodeSettings()


def described_model(raw: Mapping[str, Any], data: Path) -> ModelConfig:
    """A recipe's model. What it does not say of a policy's schema is that of the episodes."""
    if raw.get("model_type") == policy.FAMILY:
        spec = dict(raw.get("policy") or {})
        spec["schema"] = msgspec.to_builtins(open_episodes(data).schema) | dict(spec.get("schema") or {})
        raw = {**raw, "policy": spec}
    config: ModelConfig = family_of(dict(raw)).parse_config(raw)
    return config


def read_lessons(
    data: Path,
    tokenizer: Path | None,
    out: Path,
    config: ModelConfig,
    *,
    length: int | None,
    settings: EpisodeSettings = DEFAULTS,
) -> Lessons:
    """What a model learns from. Raises ConfigError for options that are missing, or are not for such a model."""
    if config.policy is None:
        return TokenLessons(stored_samples(data, _needed(tokenizer), out, config, length))
    if length is not None:
        raise ConfigError(
            explain(
                "--length", expected="a language model", found="a policy", todo="Set episodes.window in the recipe."
            )
        )
    return EpisodeLessons(open_episodes(data), config.policy, settings, instruction_codec(config.policy, tokenizer))


def scores(model: HybridBody, test: Path, tokenizer: Path | None) -> dict[str, float]:
    """Of a language model the share of held-out pairs that it completes exactly, of a policy its actions' errors."""
    if isinstance(model, HybridPolicy):
        return action_errors(model.cpu(), open_episodes(test), instruction_codec(model.spec, tokenizer))
    assert isinstance(model, HybridLM)
    return {"exact_match": exact_match(model, pairs(test, _needed(tokenizer), model.config))}


def instruction_codec(spec: PolicySpec, tokenizer: Path | None) -> InstructionCodec | None:
    """The tokenizer of a policy that reads instructions."""
    return InstructionCodec(_needed(tokenizer)) if spec.instruction else None


def _needed(tokenizer: Path | None) -> Path:
    if tokenizer is None:
        raise ConfigError(
            explain("--tokenizer", expected="a folder", found="none", todo="Give one with tokenizer.json.")
        )
    return tokenizer
