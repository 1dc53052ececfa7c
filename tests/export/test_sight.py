"""Conversations about images: answers as transformers gives them, however the prompt is cut, cached and continued."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration

import edge_sdk
from bundles import changed
from edge_export.pack import Storage
from edge_sdk import LanguageModel
from edge_sdk.backends.ort import OrtEngine
from edge_sdk.camera import Frame
from edge_sdk.errors import ConfigError, ImageError, MemoryLimitError, PromptError
from edge_sdk.vision import _begin_of_image
from places import ROOT
from servers import serving
from sighted import IMAGE_TOKEN, LETTERS, VOCABULARY

SILENT = [token for token in range(48) if token not in {VOCABULARY[letter] for letter in LETTERS}]
"""Tokens that are no letters, and so would not be the same ones when an answer's text is read again."""
ANSWER = {"max_new_tokens": 8, "logit_bias": dict.fromkeys(SILENT, -100.0)}
LONG = "look at this carefully and say what there is. " * 3


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def shown(*images: object, text: str = "what is it?") -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": each} for each in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def model(sighted: Path) -> LanguageModel:
    return edge_sdk.load(sighted / "bundle", threads=1, prefix_cache_bytes=0)


def answer(model: LanguageModel, messages: Any) -> tuple[int, ...]:
    with model.session() as session:
        return session.generate(messages, **ANSWER).token_ids


def test_answers_are_those_of_transformers(model: LanguageModel, sighted: Path) -> None:
    assert model.sight is not None
    pictures = [model.sight.picture(image(seed)) for seed in (1, 2)]
    text = model.codec.render(model.sight.for_template(shown(image(1), image(2))))
    assert text == "user: <image><image>what is it? assistant: "
    ids: list[int] = []
    for token in model.codec.encode(text):
        ids += [token] * (model.sight.spec.tokens if token == IMAGE_TOKEN else 1)
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    reference = LlavaForConditionalGeneration.from_pretrained(sighted / "checkpoint", dtype=torch.float32).eval()
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(8):
            logits = reference(input_ids=torch.tensor([ids + expected]), pixel_values=pixels).logits[0, -1]
            logits[SILENT] -= 100.0
            expected.append(int(logits.argmax()))
    assert answer(model, shown(image(1), image(2))) == tuple(expected)
    assert answer(model, shown(image(2), image(1))) != tuple(expected)


def test_every_way_of_giving_an_image_is_the_same(model: LanguageModel, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), image(1)[..., ::-1])
    expected = answer(model, shown(image(1)))
    for given_as in (tmp_path / "a.png", str(tmp_path / "a.png"), Frame(image(1), 0, 0)):
        assert answer(model, shown(given_as)) == expected
    assert answer(model, shown(image(3))) != expected


@pytest.mark.parametrize("block", [1, 4, 7])
def test_an_image_may_be_read_in_parts(model: LanguageModel, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(model, shown(image(1), image(2)))
    monkeypatch.setattr(model.engine, "prefill_block", block)
    assert answer(model, shown(image(1), image(2))) == expected


def test_a_prefix_that_is_known_is_that_of_the_same_image(model: LanguageModel, sighted: Path) -> None:
    cached = edge_sdk.load(sighted / "bundle", threads=1)

    def ask(seed: int, text: str) -> int:
        with cached.session() as session:
            completion = session.generate(shown(image(seed), text=LONG + text), **ANSWER)
        assert completion.token_ids == answer(model, shown(image(seed), text=LONG + text))
        return completion.cached_tokens

    assert ask(1, "a") == 0
    assert ask(1, "b") == 0  # here it is seen where the two part
    assert ask(1, "c") > 100
    assert ask(2, "c") == 0
    assert ask(2, "d") == 0
    assert ask(2, "e") > 100
    assert ask(1, "d") > 100


def test_a_conversation_goes_on_about_old_and_new_images(model: LanguageModel, tmp_path: Path) -> None:
    with model.session() as session:
        first = session.generate(shown(image(1)), **ANSWER)
        fork = session.fork()
        second = session.generate(shown(image(2), text="and this?"), **ANSWER)
        assert second.prompt_tokens < 50  # the first turn was not read again
        session.save(tmp_path / "session.state")
        third = session.generate("why?", **ANSWER)
    with fork:
        assert fork.generate(shown(image(2), text="and this?"), **ANSWER).token_ids == second.token_ids
    with model.restore(tmp_path / "session.state") as restored:
        assert restored.generate("why?", **ANSWER).token_ids == third.token_ids
    everything: list[Any] = [
        *shown(image(1)),
        {"role": "assistant", "content": first.text},
        *shown(image(2), text="and this?"),
    ]
    assert answer(model, everything) == second.token_ids


def test_answers_made_together_are_those_made_alone(model: LanguageModel, sighted: Path) -> None:
    together = edge_sdk.load(sighted / "bundle", threads=1, prefix_cache_bytes=0, slots=2)
    sessions = [together.session() for _ in range(2)]
    streams = [session.stream(shown(image(seed)), **ANSWER) for seed, session in enumerate(sessions)]
    tokens: list[list[int]] = [[], []]
    for _ in range(8):
        for stream, found in zip(streams, tokens):
            found.append(next(stream).token_id)
    assert [tuple(found) for found in tokens] == [answer(model, shown(image(seed))) for seed in range(2)]
    for session in sessions:
        session.close()


def test_a_template_of_text_gets_the_placeholders(model: LanguageModel, sighted: Path, tmp_path: Path) -> None:
    flat = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}assistant: "
    copied = changed(sighted / "bundle", tmp_path / "flat", flat)
    assert answer(edge_sdk.load(copied, threads=1), shown(image(1))) == answer(model, shown(image(1)))
    marked = flat.replace("{{ message.content }}", "{% generation %}{{ message.content }}{% endgeneration %}")
    copied = changed(sighted / "bundle", tmp_path / "marked", marked)
    assert answer(edge_sdk.load(copied, threads=1), shown(image(1))) == answer(model, shown(image(1)))


def test_what_cannot_be_shown_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    with model.session() as session:
        with pytest.raises(PromptError, match="as many <image> as images, 0, found 1"):
            session.generate("what is <image>?")
        with pytest.raises(ImageError, match="readable file"):
            session.generate(shown(tmp_path / "none.png"))
        wrong: Any
        for wrong in (["text"], [{"type": "text"}], [{"type": "sound"}]):
            with pytest.raises(PromptError, match="text or an image"):
                session.generate([{"role": "user", "content": wrong}])
        for wrong in (["walk"], [1]):
            with pytest.raises(PromptError, match="a role and a content"):
                session.generate(wrong)
        for wrong in ([-1], [1, 48]):
            with pytest.raises(PromptError, match="0 to 47"):
                session.append(wrong)
        assert session.position == session.waiting == 0
        session.prepare(shown(image(1)), interrupted=lambda: True)
        with pytest.raises(PromptError, match="not yet"):
            session.save(tmp_path / "session.state")
    wrong = [shown(image(1))]
    with pytest.raises(ImageError, match="Use sessions"):
        model.generate_batch(wrong)


def test_a_model_that_sees_does_not_speculate(model: LanguageModel, sighted: Path) -> None:
    assert {spec.kind for spec in model.config.layers} == {"attention", "mlp"}  # which by itself could be fed on trial
    speculation: Any
    for speculation in ("lookup", "head"):
        with pytest.raises(ConfigError, match="a model of text, found one that sees"):
            edge_sdk.load(sighted / "bundle", threads=1, speculation=speculation)
    with model.session() as session:
        session.generate(shown(image(1), image(1)), **ANSWER)  # whose ids are the same twice
        assert session.speculation.trials == 0
    assert model.engine.times is None


def test_features_that_find_no_room_are_refused_and_nothing_is_lost(model: LanguageModel, sighted: Path) -> None:
    limited = edge_sdk.load(sighted / "bundle", threads=1, prefix_cache_bytes=0)
    assert isinstance(limited.engine, OrtEngine)
    with limited.session() as session, model.session() as other:
        assert session.generate("walk", **ANSWER).token_ids == other.generate("walk", **ANSWER).token_ids
        limited.engine.limit_states(limited.engine.budget.used_bytes)
        with pytest.raises(MemoryLimitError):
            session.generate(shown(image(1)), **ANSWER)
        limited.engine.limit_states(1 << 30)
        assert session.generate(None, **ANSWER).token_ids == other.generate(shown(image(1)), **ANSWER).token_ids


def test_a_manifest_from_before_images_is_read(tiny_bundle: Any, tmp_path: Path) -> None:
    bundle = tiny_bundle("only-mamba", Storage(cache_dtype="float32"))
    shutil.copytree(bundle.path, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["model"]["vision"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert edge_sdk.load(tmp_path / "old", threads=1).config == bundle.manifest.model


def test_a_saved_image_is_known_by_its_hash_only(model: LanguageModel, tmp_path: Path) -> None:
    with model.session(template={"note": 1}) as session:
        session.generate(shown(image(1)), **ANSWER)
        session.save(tmp_path / "session.state")
    with model.restore(tmp_path / "session.state") as restored:
        restored._texts = ["something else"]  # as where a template takes back what was said
        with pytest.raises(PromptError, match="only as a hash"):
            restored.generate("why?")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["text", "one", "two"]), min_size=1, max_size=6), st.data())
def test_any_part_of_a_prompt_is_embedded_as_in_the_whole(
    model: LanguageModel, parts: list[str], data: st.DataObject
) -> None:
    assert model.sight is not None
    pictures = {name: model.sight.picture(image(seed)) for seed, name in enumerate(("one", "two"))}
    ids = [token for part in parts for token in (pictures[part].token_ids if part in pictures else (7, 8))]
    start = data.draw(st.integers(0, len(ids) - 1))
    stop = data.draw(st.integers(start + 1, len(ids)))
    whole = model.sight.embed(ids, 0, len(ids), pictures.values())
    assert np.array_equal(model.sight.embed(ids, start, stop, pictures.values()), whole[start:stop])
    for position, token in enumerate(ids):
        if token < 0:
            first = _begin_of_image(ids, position, model.sight.spec.tokens)
            name = next(name for name in pictures if pictures[name].token_ids[0] == ids[first])
            features = model.engine.image_features(pictures[name].pixels[None])[0]
            assert np.array_equal(whole[position], features[position - first])


def data_url(seed: int) -> str:
    done, content = cv2.imencode(".png", image(seed)[..., ::-1])
    assert done
    return "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()


def test_the_server_sees_and_fetches_nothing(model: LanguageModel, sighted: Path, tmp_path: Path) -> None:
    def ask(*urls: str, text: str = "what is it?") -> str | None:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        made = client.chat.completions.create(
            model=server.name,
            messages=messages,
            max_tokens=8,
            temperature=0,
            logit_bias={str(token): -100 for token in SILENT},
        )
        return made.choices[0].message.content

    with serving(sighted / "bundle", tmp_path / "log") as server:
        client = server.client()
        for seed in (1, 2, 1):
            with model.session() as session:
                assert ask(data_url(seed)) == session.generate(shown(image(seed)), **ANSWER).text
        for urls, what in (
            (["http://127.0.0.1/a.png"], "data:image"),
            (["file:///etc/hostname"], "data:image"),
            (["data:image/png;base64,*"], "base64"),
            (["data:image/png;base64,AAAA"], "JPEG or PNG"),
            ([data_url(1)] * 9, "at most 8 images"),
        ):
            with pytest.raises(openai.BadRequestError, match=what):
                ask(*urls)
        with pytest.raises(openai.BadRequestError, match="as many <image> as images"):
            ask(text="what is <image>?")


def run(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sdk.cli", "run", bundle, "what is it?", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def test_the_command_line_shows_images(model: LanguageModel, sighted: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), image(seed)[..., ::-1])
    options = ("--max-new-tokens", 8, "--threads", 1, "--json")
    result = run(sighted / "bundle", "--image", tmp_path / "1.png", "--image", tmp_path / "2.png", *options)
    assert result.returncode == 0, result.stderr
    expected = model.generate(shown(image(1), image(2)), max_new_tokens=8)
    assert json.loads(result.stdout)["token_ids"] == list(expected.token_ids)
    refused = run(sighted / "bundle", "--image", tmp_path / "3.png")
    assert refused.returncode == 1
    assert "a readable file" in refused.stderr


def test_a_model_of_text_refuses_images(tiny_bundle: Any, tmp_path: Path) -> None:
    bundle = tiny_bundle("only-mamba", Storage(cache_dtype="float32"))
    with edge_sdk.load(bundle.path, threads=1).session() as session, pytest.raises(ImageError, match="no vision graph"):
        session.generate(shown(image(1)))
    with serving(bundle.path, tmp_path / "log") as server:
        part = {"type": "image_url", "image_url": {"url": data_url(1)}}
        messages: Any = [{"role": "user", "content": [part]}]
        with pytest.raises(openai.BadRequestError, match="no vision graph"):
            server.client().chat.completions.create(model=server.name, messages=messages)


def test_the_examples_of_the_docs_run(
    sighted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    page = (ROOT / "docs" / "vision.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    shutil.copytree(sighted / "bundle", tmp_path / "bundle")
    writer = cv2.VideoWriter(str(tmp_path / "drive.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (64, 48))
    for level in range(0, 250, 10):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    cv2.imwrite(str(tmp_path / "plant.jpg"), image(1))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= 2
    assert re.fullmatch(r"frame \d+, \d+\.\d ms old, \d+ forgotten", printed[-1])
