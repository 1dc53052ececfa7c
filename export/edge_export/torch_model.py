"""The hybrid model in torch, built from a ModelConfig: what is trained, pruned, distilled and traced.

Parameter names are those of a Nemotron-H checkpoint without its ``backbone.`` prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.data import Batch
from edge_export.torch_layers import Mamba2Mixer, RMSNorm, States, make_mixer, mix, times
from edge_sdk.model import LayerSpec, ModelConfig, MtpSpec, state_specs
from edge_sdk.tensor_spec import TensorSpec


class Layer(nn.Module):
    """x + mixer(rms_norm(x))."""

    def __init__(self, spec: LayerSpec, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(hidden, eps)
        self.mixer = make_mixer(spec, hidden, eps)

    def forward(
        self, x: Tensor, past_length: Tensor | None = None, states: States = (), documents: Tensor | None = None
    ) -> tuple[Tensor, States]:
        mixed, states = mix(self.mixer, self.norm(x), past_length, states, documents)
        return x + mixed, states


class MtpHead(nn.Module):
    """Drafts: from a position's hidden state and the next token to the hidden state that tells the token after it.

    DeepSeek-V3's multi-token prediction (arXiv 2412.19437, section 2.2), its two halves joined as Nemotron 3 joins
    them: embedding first. Embeddings and output projection are the model's.
    """

    def __init__(self, spec: MtpSpec, hidden: int, eps: float) -> None:
        super().__init__()
        self.config = spec
        self.enorm, self.hnorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(Layer(layer, hidden, eps) for layer in spec.layers)
        self.final_layernorm = RMSNorm(hidden, eps)

    def join(self, hidden_states: Tensor, embedded: Tensor) -> Tensor:
        """The residual stream that enters the layers; it and both inputs are (batch, length, hidden)."""
        return self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden_states)], dim=-1))

    def forward(
        self, hidden_states: Tensor, embedded: Tensor, rounds: Sequence[States] = ()
    ) -> tuple[Tensor, list[States]]:
        """Whole sequences of hidden states and of the tokens after them, embedded; each (batch, length, hidden).

        Returns the hidden states (batch, length, hidden) that tell the tokens after those, and what ``rounds`` is for
        the next round, which drafts on from them at all positions at once: what training runs.
        """
        x, kept = self.join(hidden_states, embedded), []
        for layer, earlier in zip(self.layers, rounds or [()] * len(self.layers)):
            x, states = layer(x, None, earlier)
            kept.append(states)
        return self.final_layernorm(x), kept

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.eh_proj.weight.device

    def reset_parameters(self, seed: int) -> None:
        """Random weights for training from scratch."""
        torch.manual_seed(seed)
        draw_weights(self, len(self.layers))


def draw_weights(module: nn.Module, layers: int) -> None:
    """Normal random weights, scaled down for what so many layers add to the residual stream."""
    outputs = ("out_proj.weight", "o_proj.weight", "down_proj.weight", "down_weight", "fc2_latent_proj.weight")
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            fan_in = parameter.shape[-2] if name.endswith(("up_weight", "down_weight")) else parameter.shape[-1]
            depth = 2 * layers if name.endswith(outputs) else 1
            nn.init.normal_(parameter, std=(fan_in * depth) ** -0.5)


class HybridBody(nn.Module):
    """What language models and policies have in common: layers, their states, and the norm behind them."""

    layers: nn.ModuleList
    norm_f: RMSNorm

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def make_layers(self) -> None:
        """Makes the layers and the norm behind them; when it is called says where they stand among the parameters."""
        config = self.config
        self.layers = nn.ModuleList(Layer(spec, config.hidden, config.norm_eps) for spec in config.layers)
        self.norm_f = RMSNorm(config.hidden, config.norm_eps)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm_f.weight.device

    def tie(self) -> None:
        """Makes one of those weights that the config says are the same, after they were assigned."""

    def reset_parameters(self, seed: int) -> None:
        """Random weights for training from scratch."""
        torch.manual_seed(seed)
        draw_weights(self, len(self.layers))
        for module in self.modules():
            if isinstance(module, Mamba2Mixer):
                module.reset_parameters()

    def predict(self, batch: Any) -> Tensor:
        """What it says where a batch has something to be learnt; the first axis counts ``batch.tokens``."""
        raise NotImplementedError

    def data_error(self, found: Tensor, batch: Any) -> Tensor:
        """How far :meth:`predict` is from a batch's own targets, summed up."""
        raise NotImplementedError

    def moved(self, found: Tensor, expected: Tensor) -> Tensor:
        """How far one prediction is from another, summed up."""
        raise NotImplementedError

    def empty_states(self, batch: int, capacity: int) -> States:
        """The states before the first token, with caches of ``capacity`` positions."""
        return self._zeros(self.config.past_specs(), batch, capacity)

    def _zeros(self, specs: Sequence[TensorSpec], batch: int, capacity: int) -> States:
        device = self.device
        return tuple(
            torch.zeros(spec.sized(batch=batch, capacity=capacity), dtype=getattr(torch, spec.dtype), device=device)
            for spec in specs
        )

    def _run(
        self, specs: Sequence[LayerSpec], layers: nn.ModuleList, x: Tensor, past_length: Tensor, states: States
    ) -> tuple[Tensor, States]:
        """The residual stream x (batch, length, hidden) through layers, and their new states."""
        present: list[Tensor] = []
        taken = 0
        for spec, layer in zip(specs, layers):
            count = len(spec.states(self.config))
            x, new = layer(x, past_length, states[taken : taken + count])
            present.extend(new)
            taken += count
        return x, tuple(present)


AnyModel = TypeVar("AnyModel", bound=HybridBody)


class HybridLM(HybridBody):
    """The whole model: ``model(input_ids)`` for whole sequences, :meth:`step` from state to state.

    Training leaves the drafting head as it is; it has a training of its own (``drafting_head.py``).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden)
        self.make_layers()
        self.lm_head = nn.Linear(config.hidden, config.vocab_size, bias=False)
        self.tie()
        if config.mtp is not None:
            self.add_head(config.mtp)

    def add_head(self, spec: MtpSpec) -> None:
        """Gives the model a drafting head whose weights have no values yet."""
        self.config = msgspec.structs.replace(self.config, mtp=spec)
        self.mtp = MtpHead(spec, self.config.hidden, self.config.norm_eps)

    def tie(self) -> None:
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embeddings.weight

    def empty_draft_states(self, batch: int, capacity: int) -> States:
        """The drafting head's caches before the first token."""
        assert self.config.mtp is not None
        return self._zeros(state_specs("past_key_values", self.config.mtp.layers, self.config), batch, capacity)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Tokens (batch, length) -> what enters the first layer (batch, length, hidden)."""
        return times(self.embeddings(input_ids), self.config.embedding_multiplier)

    def logits(self, x: Tensor) -> Tensor:
        """What left the last layer (batch, kept, hidden) -> logits (batch, kept, vocab)."""
        return self.head(self.norm_f(x))

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states behind the final norm (batch, kept, hidden) -> logits (batch, kept, vocab)."""
        return times(self.lm_head(hidden), self.config.logits_multiplier)

    def forward(self, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Whole sequences input_ids (batch, length) -> logits (batch, length, vocab); what training runs.

        With ``documents`` (batch, length) rows are packed (:mod:`edge_export.packed_rows`), and every document has the
        logits that it would have in a row of its own.
        """
        return self.head(self.hidden_states(input_ids, documents))

    def hidden_states(self, input_ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Of whole sequences, as in :meth:`forward`, what the output projection reads (batch, length, hidden)."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x, _ = layer(x, documents=documents)
        return self.norm_f(x)

    def predict(self, batch: Batch) -> Tensor:
        """Logits (targets, vocab)."""
        return self(batch.input_ids, batch.documents)[batch.counted].float()

    def data_error(self, found: Tensor, batch: Batch) -> Tensor:
        """Negative log-likelihood of the targets."""
        return F.cross_entropy(found, batch.targets[batch.counted], reduction="sum")

    def moved(self, found: Tensor, expected: Tensor) -> Tensor:
        """KL divergence of the distributions that were found from those expected."""
        return F.kl_div(found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="sum")

    def step(
        self, input_ids: Tensor, past_length: Tensor, logit_positions: Tensor, states: States
    ) -> tuple[Tensor, States]:
        """What the graph computes: the next tokens (batch, length) of rows that hold past_length (batch) tokens.

        Returns the logits (batch, kept, vocab) of the block's positions logit_positions (kept), and the new states.
        """
        return self.step_embedded(self.embeddings(input_ids), past_length, logit_positions, states)

    def step_embedded(
        self, inputs_embeds: Tensor, past_length: Tensor, logit_positions: Tensor, states: States
    ) -> tuple[Tensor, States]:
        """:meth:`step` over embeddings (batch, length, hidden) of tokens, or of what stands in the place of some."""
        x = times(inputs_embeds, self.config.embedding_multiplier)
        x, present = self._run(self.config.layers, self.layers, x, past_length, states)
        return self.logits(x.index_select(1, logit_positions)), present

    def step_with_hidden(
        self, input_ids: Tensor, past_length: Tensor, logit_positions: Tensor, states: States
    ) -> tuple[Tensor, Tensor, States]:
        """:meth:`step`, and between logits and states what the drafting head reads.

        These are the hidden states (batch, length, hidden) of all positions after the final norm.
        """
        x, present = self._run(self.config.layers, self.layers, self.embed(input_ids), past_length, states)
        hidden = self.norm_f(x)
        return self.head(hidden.index_select(1, logit_positions)), hidden, present

    def draft(
        self, hidden_states: Tensor, input_ids: Tensor, past_length: Tensor, logit_positions: Tensor, states: States
    ) -> tuple[Tensor, Tensor, States]:
        """One step of the drafting head over positions with hidden_states (batch, length, hidden).

        input_ids (batch, length) are the tokens after these positions, past_length (batch) the positions that the
        head's own states hold. Returns for the positions logit_positions (kept) the logits (batch, kept, vocab) of
        the tokens after those, and the hidden states (batch, kept, hidden) to draft on from; and the new states.
        """
        assert self.config.mtp is not None
        x = self.mtp.join(hidden_states, self.embed(input_ids))
        x, present = self._run(self.config.mtp.layers, self.mtp.layers, x, past_length, states)
        hidden = self.mtp.final_layernorm(x.index_select(1, logit_positions))
        return self.head(hidden), hidden, present
