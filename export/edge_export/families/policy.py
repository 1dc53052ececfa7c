"""Policies of ours: config.json is the ModelConfig as it is, and tensors have the names that they have in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from edge_export.families import common
from edge_export.tensors import TensorMap
from edge_export.torch_policy import HybridPolicy
from edge_sdk.errors import CheckpointError, ConfigError, explain
from edge_sdk.model import ModelConfig

FIXED: dict[str, Any] = {}

FAMILY = "policy"


def parse_config(raw: common.Config) -> ModelConfig:
    """A ModelConfig from the parsed config.json; refuses by name what it does not know."""
    fields = {name: value for name, value in raw.items() if name not in ("model_type", "architectures")}
    try:
        config = msgspec.convert({"vocab_size": 0, **fields, "family": FAMILY}, ModelConfig)
    except (msgspec.ValidationError, ConfigError) as error:
        raise _refused("a policy's description", error) from None
    if config.policy is None:
        raise _refused("a policy", "none")
    known = [msgspec.to_builtins(spec).keys() for spec in config.layers]
    unknown = {name for layer, names in zip(fields["layers"], known) for name in layer.keys() - names}
    if unknown:
        raise _refused("layers' settings that are known here", ", ".join(sorted(unknown)))
    return config


def _refused(expected: str, found: object) -> CheckpointError:
    return CheckpointError(explain("config.json", expected=expected, found=found, todo="See docs/policies.md."))


def format_config(config: ModelConfig) -> dict[str, Any]:
    """The reverse of :func:`parse_config`."""
    fields = msgspec.to_builtins(config)
    return {"model_type": FAMILY, "architectures": ["HybridPolicy"], **without_defaults(config, fields)}


def without_defaults(config: ModelConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that say something: not those at their defaults, nor the family, which model_type says."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(config)}
    return {name: value for name, value in fields.items() if name != "family" and value != defaults[name]}


def tensor_maps(config: ModelConfig) -> Iterator[TensorMap]:
    """Every tensor by itself."""
    with torch.device("meta"):
        names = HybridPolicy(config).state_dict()
    yield from (TensorMap(name, (name,)) for name in names)
