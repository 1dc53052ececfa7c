"""How much each part of a policy's encoder and decoder matters, measured as the layers' parts are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edge_export.activation_sums import LayerImportance, Sums, add_norm
from edge_export.episode_batches import EpisodeBatch
from edge_export.policy_decoder import DecoderBlock
from edge_export.torch_policy import HybridPolicy


@dataclass
class PolicyImportance:
    """Scores of a policy's encoder and decoder."""

    hidden: Tensor
    """Mean square of the decoder's norms' outputs per hidden channel (hidden), summed over the norms."""
    encoder_width: Tensor | None
    """Mean square of the channels (width) between the vectors' two products; None where there is one product."""
    blocks: list[LayerImportance]
    """Of the decoder; ``parts``: ``heads`` (heads) and ``intermediate`` (intermediate), and ``norm_input`` of norm2."""
    norm_input: Tensor
    """Of the decoder's last norm, as in LayerImportance."""


class PolicyEnds:
    """Sums up what happens in a policy's encoder and decoder."""

    def __init__(self, model: HybridPolicy) -> None:
        self._model, self.blocks = model, [block for block in model.decoder.blocks if isinstance(block, DecoderBlock)]
        self._encoder, self._last = Sums(), Sums()
        self._firsts, self._seconds = ([Sums() for _ in self.blocks] for _ in range(2))

    @contextmanager
    def watched(self, batch: EpisodeBatch) -> Iterator[None]:
        """While it lasts, a forward pass of a batch is added up."""
        learnt = batch.chunks.flat().learnt.squeeze(-1)
        hooks = [self._model.decoder.norm.register_forward_hook(add_norm(self._last, learnt))]
        for block, first, second in zip(self.blocks, self._firsts, self._seconds):
            hooks.append(block.norm1.register_forward_hook(add_norm(first, learnt)))
            hooks.append(block.norm2.register_forward_hook(add_norm(second, learnt)))
            hooks.append(_squares(block.out_proj, learnt, _by_head(first, block)))
            hooks.append(_squares(block.down_proj, learnt, _into(second, "intermediate")))
        vectors = self._model.encoder.vectors
        if vectors is not None and vectors.fc1 is not None:
            hooks.append(_squares(vectors.fc2, batch.counted, _into(self._encoder, "width")))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def scores(self, positions: int, targets: int, removal: Sequence[float]) -> PolicyImportance:
        """From what was added up, and what leaving out each of the decoder's blocks does."""
        firsts, seconds = ([sums.means(targets) for sums in part] for part in (self._firsts, self._seconds))
        last = self._last.means(targets)
        return PolicyImportance(
            hidden=sum((part["hidden"] for part in (*firsts, *seconds)), last["hidden"]),
            encoder_width=self._encoder.means(positions).get("width"),
            blocks=[
                LayerImportance(
                    first["input"],
                    effect,
                    {"heads": first["heads"], "intermediate": second["intermediate"], "norm_input": second["input"]},
                )
                for first, second, effect in zip(firsts, seconds, removal)
            ],
            norm_input=last["input"],
        )


def _squares(product: nn.Module, counted: Tensor, add: Callable[[Tensor], None]) -> RemovableHandle:
    """Calls ``add`` with the squares (positions, width) of what enters a product."""
    return product.register_forward_pre_hook(lambda module, inputs: add(inputs[0][counted].float().square()))


def _into(sums: Sums, name: str) -> Callable[[Tensor], None]:
    return lambda squares: sums.add(name, squares)


def _by_head(sums: Sums, block: DecoderBlock) -> Callable[[Tensor], None]:
    return lambda squares: sums.add("heads", squares.unflatten(-1, (block.heads, -1)).sum(-1))
