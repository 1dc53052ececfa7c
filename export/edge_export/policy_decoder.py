"""From what the layers say of a position to a chunk of actions: at once, or from noise in a few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_export.policy_layers import Dense
from edge_export.torch_layers import Constant, RMSNorm
from edge_sdk.policy_spec import TIME_FEATURES, TIME_WIDTH, PolicySpec


@dataclass(frozen=True)
class Chunks:
    """What a decoder learns from: actions are normalised, and what is random was drawn before.

    In a batch the first axis is two, (rows, kept); :meth:`flat` makes one of them.
    """

    actions: Tensor
    """(rows, chunk, action_dim)"""
    known: Tensor
    """(rows, chunk, 1), whether an action is committed: it is given, and nothing to be learnt."""
    learnt: Tensor
    """(rows, chunk, 1), whether an action is to be learnt: within its episode, and not committed."""
    noise: Tensor
    """(rows, chunk, action_dim), standard normal; flow matching alone reads it, and the time."""
    time: Tensor
    """(rows, 1, 1), from 0, noise, to 1, actions."""

    def to(self, device: torch.device) -> Chunks:
        """The same on another device."""
        return Chunks(**{name: value.to(device) for name, value in vars(self).items()})

    def rows(self, chosen: slice) -> Chunks:
        """Some of the rows."""
        return Chunks(**{name: value[chosen] for name, value in vars(self).items()})

    def flat(self) -> Chunks:
        """(rows * kept, chunk, ...) of (rows, kept, chunk, ...)."""
        return Chunks(**{name: value.flatten(0, 1) for name, value in vars(self).items()})


class DecoderBlock(nn.Module):
    """A pre-norm transformer block without a mask over the actions of a chunk; x is (rows, chunk, hidden)."""

    def __init__(self, spec: PolicySpec, hidden: int, eps: float) -> None:
        super().__init__()
        self.heads, self.head_dim = spec.decoder.heads, spec.decoder.head_dim
        inner = self.heads * self.head_dim
        self.norm1 = RMSNorm(hidden, eps)
        self.qkv_proj, self.out_proj = Dense(hidden, 3 * inner, bias=False), Dense(inner, hidden, bias=False)
        self.norm2 = RMSNorm(hidden, eps)
        self.up_proj = Dense(hidden, spec.decoder.intermediate, bias=False)
        self.down_proj = Dense(spec.decoder.intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out_proj(self.attend(self.norm1(x)))
        risen = F.relu(self.up_proj(self.norm2(x)))
        return x + self.down_proj(risen * risen)

    def attend(self, x: Tensor) -> Tensor:
        """(rows, chunk, hidden) -> (rows, chunk, heads * head_dim)."""
        chunk = x.shape[1]
        by_head = self.qkv_proj(x).reshape(-1, chunk, 3 * self.heads, self.head_dim).transpose(1, 2)
        query, key, value = by_head.chunk(3, dim=1)  # (rows, heads, chunk, head_dim)
        weights = (query @ key.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).reshape(-1, chunk, self.heads * self.head_dim)


class ActionDecoder(nn.Module):
    """What both heads have: a token per action, made of the position, the condition and an action, through blocks."""

    def __init__(self, spec: PolicySpec, hidden: int, eps: float) -> None:
        super().__init__()
        schema = spec.schema
        self.place = nn.Parameter(torch.empty(schema.chunk_length, hidden))
        self.action_in = Dense(schema.action_dim, hidden)
        self.blocks = nn.ModuleList(DecoderBlock(spec, hidden, eps) for _ in range(spec.decoder.layers))
        self.norm = RMSNorm(hidden, eps)
        self.action_out = Dense(hidden, schema.action_dim)

    def reset_parameters(self) -> None:
        """Random weights for training from scratch: normal, scaled down for the blocks' outputs."""
        nn.init.normal_(self.place, std=0.5)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=(weight.shape[1] * 2 * len(self.blocks)) ** -0.5)

    def run(self, tokens: Tensor) -> Tensor:
        """Tokens (rows, chunk, hidden) -> what stands for their actions (rows, chunk, action_dim)."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.action_out(self.norm(tokens))

    def actions(self, condition: Tensor, committed: Tensor, known: Tensor, noise: Tensor | None) -> Tensor:
        """What the graph computes: a normalised chunk (rows, chunk, action_dim) for each condition (rows, hidden).

        ``committed`` (rows, chunk, action_dim) are normalised actions that count where ``known`` (rows, chunk, 1) says
        so and may be anything elsewhere; what comes out in their places does not matter.
        """
        raise NotImplementedError

    def output(self, condition: Tensor, chunks: Chunks) -> Tensor:
        """What is learnt, of conditions (rows, hidden): (rows, chunk, action_dim)."""
        raise NotImplementedError

    def target(self, chunks: Chunks) -> Tensor:
        """What :meth:`output` should be."""
        raise NotImplementedError

    def distance(self, found: Tensor, expected: Tensor) -> Tensor:
        """How far two outputs are apart, number by number."""
        raise NotImplementedError


class RegressionDecoder(ActionDecoder):
    """All actions at once, by their absolute error (ACT, arXiv 2304.13705, without its variational part)."""

    def actions(self, condition: Tensor, committed: Tensor, known: Tensor, noise: Tensor | None) -> Tensor:
        given = torch.where(known, self.action_in(committed), 0.0)
        return self.run(condition.unsqueeze(1) + self.place + given)

    def output(self, condition: Tensor, chunks: Chunks) -> Tensor:
        return self.actions(condition, chunks.actions, chunks.known, None)

    def target(self, chunks: Chunks) -> Tensor:
        return chunks.actions

    def distance(self, found: Tensor, expected: Tensor) -> Tensor:
        return (found - expected).abs()


class FlowDecoder(ActionDecoder):
    """Conditional flow matching (Lipman et al., arXiv 2210.02747) as pi0 has it (arXiv 2410.24164, section IV).

    Between noise at time 0 and actions at time 1 lies ``time * actions + (1 - time) * noise``; the velocity that leads
    along it is ``actions - noise``. A committed action's own time is 1, whatever the others' is (training-time
    real-time chunking, arXiv 2512.05964).
    """

    def __init__(self, spec: PolicySpec, hidden: int, eps: float) -> None:
        super().__init__(spec, hidden, eps)
        self.steps = spec.decoder.flow_steps
        self.time_in, self.time_out = Dense(TIME_FEATURES, TIME_WIDTH), Dense(TIME_WIDTH, hidden)
        times = [step / self.steps for step in range(self.steps + 1)]
        self.times = Constant(time_features(torch.tensor(times, device="cpu").unsqueeze(-1)))

    def embedded(self, features: Tensor) -> Tensor:
        """Features of times (..., TIME_FEATURES) -> (..., hidden)."""
        return self.time_out(F.silu(self.time_in(features)))

    def actions(self, condition: Tensor, committed: Tensor, known: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        times, base, x = self.embedded(self.times.weight), condition.unsqueeze(1) + self.place, noise
        at_end = base + times[-1]
        for step in range(self.steps):
            x = torch.where(known, committed, x)
            tokens = torch.where(known, at_end, base + times[step]) + self.action_in(x)
            x = x + self.run(tokens) * (1 / self.steps)
        return x

    def output(self, condition: Tensor, chunks: Chunks) -> Tensor:
        between = chunks.time * chunks.actions + (1 - chunks.time) * chunks.noise
        x = torch.where(chunks.known, chunks.actions, between)
        return self.velocity(condition, x, torch.where(chunks.known, 1.0, chunks.time))

    def velocity(self, condition: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """Of x (rows, chunk, action_dim) at times (rows, chunk, 1)."""
        base = condition.unsqueeze(1) + self.place
        return self.run(base + self.embedded(time_features(time)) + self.action_in(x))

    def target(self, chunks: Chunks) -> Tensor:
        return chunks.actions - chunks.noise

    def distance(self, found: Tensor, expected: Tensor) -> Tensor:
        return (found - expected).square()


def time_features(time: Tensor) -> Tensor:
    """Times (..., 1) from 0 to 1 as sines and cosines (..., TIME_FEATURES) of periods from 4 down to 0.1."""
    steps = torch.arange(TIME_FEATURES // 2, device=time.device) / (TIME_FEATURES // 2 - 1)
    angles = time * (2 * math.pi / 4) * (4 / 0.1) ** steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def make_decoder(spec: PolicySpec, hidden: int, eps: float) -> ActionDecoder:
    """The decoder that a policy's head names."""
    return (FlowDecoder if spec.flow else RegressionDecoder)(spec, hidden, eps)
