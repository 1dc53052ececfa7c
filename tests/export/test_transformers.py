"""Our torch model against transformers' independent NemotronH implementation, on the same files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from edge_export.checkpoint import load_model, read_config, save_model
from edge_export.evaluate import TorchEngine
from edge_sdk.text import TextCodec
from places import TEACHER
from tiny import VARIANTS, make, relative_error

TOLERANCE = 1e-4


def load_theirs(folder: Path) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


@torch.inference_mode()
def errors(folder: Path, ids: torch.Tensor, steps: int) -> list[float]:
    """Of a whole prefill, of one of all but ``steps`` tokens, and of these one by one with the cache."""
    ours, theirs = load_model(folder).eval(), load_theirs(folder)
    found = [relative_error(ours(ids), theirs(ids).logits)]
    ours.config = msgspec.structs.replace(ours.config, cache_dtype="float32")
    engine, prompt = TorchEngine(ours), ids.shape[1] - steps
    states = engine.empty_states(len(ids))
    logits = engine.step(ids[:, :prompt].numpy(), states, logits="all")
    cached = theirs(ids[:, :prompt], use_cache=True)
    found.append(relative_error(torch.from_numpy(logits), cached.logits))
    for position in range(prompt, ids.shape[1]):
        token = ids[:, position : position + 1]
        logits = engine.step(token.numpy(), states)
        if "cache_params" in cached:
            cached = theirs(token, cache_params=cached.cache_params, use_cache=True)
        else:  # Bamba asks its first layer for the position, which may be a Mamba layer that does not know
            at = torch.full_like(token, position)
            cached = theirs(token, past_key_values=cached.past_key_values, use_cache=True, position_ids=at)
        found.append(relative_error(torch.from_numpy(logits), cached.logits))
    assert len(found) == 2 + steps
    return found


@pytest.mark.parametrize(
    "variant", sorted(VARIANTS.keys() - {"tied", "only-mamba"})
)  # which transformers' NemotronH cannot do
def test_logits_agree(variant: str, tmp_path: Path) -> None:
    model = make(variant)
    save_model(model, tmp_path / "checkpoint")
    assert read_config(tmp_path / "checkpoint") == model.config
    ids = torch.randint(0, model.config.vocab_size, (2, 150), generator=torch.Generator().manual_seed(1))
    assert all(error <= TOLERANCE for error in errors(tmp_path / "checkpoint", ids, steps=20))


def test_the_shipped_teacher_agrees() -> None:
    ids = torch.randint(5, 24, (4, 100), generator=torch.Generator().manual_seed(2))
    assert all(error <= TOLERANCE for error in errors(TEACHER, ids, steps=20))


def test_a_checkpoint_that_transformers_wrote_loads(tmp_path: Path) -> None:
    save_model(make("plain"), tmp_path / "ours")
    theirs = load_theirs(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ids = torch.randint(0, 48, (1, 30), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert relative_error(load_model(tmp_path / "theirs")(ids), theirs(ids).logits) <= TOLERANCE


def test_transformers_reads_the_teachers_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    message = [{"role": "user", "content": "walk around left"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text == "<s> walk around left =>"
    ours = TextCodec(TEACHER).encode_prompt("walk around left")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ours
