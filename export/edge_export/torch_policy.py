"""A hybrid model as a control policy: observations in, chunks of actions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edge_export.episode_batches import EpisodeBatch
from edge_export.policy_decoder import make_decoder
from edge_export.policy_encoder import ObservationEncoder
from edge_export.policy_layers import Dense, Normalizer
from edge_export.torch_layers import States, times
from edge_export.torch_model import HybridBody
from edge_sdk.model import ModelConfig
from edge_sdk.policy_spec import NO_TOKEN, OBSERVATION_PREFIX


class HybridPolicy(HybridBody):
    """The layers of a hybrid model between an observation encoder and an action decoder.

    ``policy(observations, input_ids)`` says of whole episodes what the decoder reads; :meth:`step` goes from state to
    state.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        spec = config.policy
        assert spec is not None
        self.spec = spec
        self.encoder = ObservationEncoder(spec, config.hidden)
        if spec.instruction:
            self.embeddings = nn.Embedding(config.vocab_size, config.hidden)
        self.make_layers()
        self.decoder = make_decoder(spec, config.hidden, config.norm_eps)
        self.action_scale = Normalizer([(spec.schema.action.normalization, spec.schema.action_dim)])

    def reset_parameters(self, seed: int) -> None:
        """Random weights for training from scratch."""
        super().reset_parameters(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
            elif isinstance(module, Dense) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.decoder.reset_parameters()

    def embed(self, observations: Sequence[Tensor], input_ids: Tensor | None) -> Tensor:
        """What enters the first layer (batch, length, hidden).

        Of observations (batch, length, *shape) each, in the schema's order, and tokens (batch, length), which count
        where they are not NO_TOKEN.
        """
        x = self.encoder(observations)
        if input_ids is None:
            return x
        tokens = times(self.embeddings(input_ids.clamp(min=0)), self.config.embedding_multiplier)
        return torch.where((input_ids != NO_TOKEN).unsqueeze(-1), tokens, x)

    def forward(self, observations: Sequence[Tensor], input_ids: Tensor | None = None) -> Tensor:
        """Whole episodes, from nothing -> what the decoder reads of each position (batch, length, hidden)."""
        x = self.embed(observations, input_ids)
        for layer in self.layers:
            x, _ = layer(x)
        return self.norm_f(x)

    def predict(self, batch: EpisodeBatch) -> Tensor:
        """What the decoder is to learn (actions, action_dim): actions, or with flow matching velocities."""
        x = self(batch.observations, batch.input_ids)
        rows = torch.arange(len(x), device=x.device).unsqueeze(-1)
        chunks = batch.chunks.flat()
        output = self.decoder.output(x[rows, batch.positions].flatten(0, 1), chunks)
        return output[chunks.learnt.squeeze(-1)].float()

    def data_error(self, found: Tensor, batch: EpisodeBatch) -> Tensor:
        """As :meth:`moved`, from what the batch's actions say."""
        chunks = batch.chunks.flat()
        return self.moved(found, self.decoder.target(chunks)[chunks.learnt.squeeze(-1)])

    def moved(self, found: Tensor, expected: Tensor) -> Tensor:
        """Mean distance over an action's dimensions: absolute or, with flow matching, squared."""
        return self.decoder.distance(found, expected).mean(-1).sum()

    def step(self, fed: Mapping[str, Tensor], states: States) -> tuple[Tensor, States]:
        """What the graph computes, from its inputs by name (``PolicySpec.inputs``) and the states.

        Returns actions (batch, kept, chunk, action_dim) in physical units, and the new states.
        """
        observations = [fed[OBSERVATION_PREFIX + item.name] for item in self.spec.schema.observations]
        x = self.embed(observations, fed.get("input_ids"))
        x, present = self._run(self.config.layers, self.layers, x, fed["past_length"], states)
        condition = self.norm_f(x.index_select(1, fed["action_positions"]))
        return self.act(condition, fed["committed"], fed["committed_length"], fed.get("noise")), present

    def act(self, condition: Tensor, committed: Tensor, committed_length: Tensor, noise: Tensor | None) -> Tensor:
        """Actions (batch, kept, chunk, action_dim) in physical units, of conditions (batch, kept, hidden).

        The first committed_length (batch, kept) are those of ``committed``, which like noise has the actions' shape.
        """
        chunk, size = committed.shape[-2:]
        given, drawn = (None if part is None else part.reshape(-1, chunk, size) for part in (committed, noise))
        assert given is not None
        places = torch.arange(chunk, device=committed.device)
        known = (places < committed_length.reshape(-1, 1)).unsqueeze(-1)
        condition = condition.reshape(-1, condition.shape[-1])
        found = self.decoder.actions(condition, self.action_scale(given), known, drawn)
        return torch.where(known, given, self.action_scale.undo(found)).view(committed.shape)
