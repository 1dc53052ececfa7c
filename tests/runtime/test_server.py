"""`edge-sdk serve` as OpenAI's own client sees it: answers, streams, and whatever else may be sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_sdk
from edge_sdk import LanguageModel
from servers import Server, serving

COMMANDS = ("walk around left thrice", "jump twice and run", "look opposite right after walk", "turn left")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server(scan_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(scan_bundle, log, "--max-body", 100_000, "--waiting", 32) as started:
        yield started


@pytest.fixture(scope="module")
def model(scan_bundle: Path) -> LanguageModel:
    return edge_sdk.load(scan_bundle, threads=1, prefix_cache_bytes=0)


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def ask(server: Server, text: str, **more: Any) -> Any:
    return server.client().chat.completions.create(model=server.name, messages=said(text), **{"temperature": 0, **more})


def test_an_answer_is_the_models(server: Server, model: LanguageModel) -> None:
    for command in COMMANDS:
        expected = model.generate(command)
        answer = ask(server, command)
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == expected.prompt_tokens
        assert answer.usage.completion_tokens == len(expected.token_ids)


def test_a_stream_is_the_answer_in_pieces(server: Server, model: LanguageModel) -> None:
    chunks = list(ask(server, COMMANDS[0], stream=True, stream_options={"include_usage": True}))
    expected = model.generate(COMMANDS[0])
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert texts == [token.text for token in model.session().stream(COMMANDS[0])]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_logprobs_are_the_models(server: Server, model: LanguageModel) -> None:
    with model.session() as session:
        expected = list(session.stream("jump twice", logprobs=2))
    whole = ask(server, "jump twice", logprobs=True, top_logprobs=2).choices[0].logprobs.content
    stream = ask(server, "jump twice", logprobs=True, top_logprobs=2, stream=True)
    pieces = [
        entry for chunk in stream for choice in chunk.choices if choice.logprobs for entry in choice.logprobs.content
    ]
    for entries in (whole, pieces):
        assert [entry.logprob for entry in entries] == pytest.approx([token.logprob for token in expected], abs=1e-6)
        assert [entry.token for entry in entries] == ["I_JUMP", "I_JUMP"]
        assert [len(entry.top_logprobs) for entry in entries] == [2, 2]
        assert bytes(entries[0].bytes) == b"I_JUMP"
    alone = ask(server, "jump twice", logprobs=True, temperature=1e-300).choices[0].logprobs.content
    assert [(entry.token, entry.top_logprobs) for entry in alone] == [("I_JUMP", []), ("I_JUMP", [])]


def test_several_answers_are_those_of_the_next_seeds(server: Server, model: LanguageModel) -> None:
    options = {"temperature": 2.0, "seed": 7, "n": 3}
    expected = model.alternatives(COMMANDS[0], 3, temperature=2.0, seed=7, logit_bias={23: 12.0})
    whole = ask(server, COMMANDS[0], **options, logit_bias={"23": 12})
    streamed = ["", "", ""]
    for chunk in ask(server, COMMANDS[0], **options, logit_bias={"23": 12}, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    texts = [completion.text for completion in expected]
    assert len(set(texts)) > 1
    assert [choice.message.content for choice in whole.choices] == texts == streamed
    assert whole.usage.prompt_tokens == model.generate(COMMANDS[0]).prompt_tokens


def test_limits_and_stop_texts_end_an_answer(server: Server) -> None:
    assert ask(server, COMMANDS[0], max_tokens=2).choices[0].finish_reason == "length"
    assert ask(server, COMMANDS[0], max_completion_tokens=2).usage.completion_tokens == 2
    assert ask(server, COMMANDS[0], stop=[" I_WALK"]).choices[0].message.content == "I_TURN_LEFT"
    assert ask(server, COMMANDS[0], extra_body={"deadline_ms": 0}).choices[0].finish_reason == "length"


def test_completions_take_text_and_token_ids(server: Server, model: LanguageModel) -> None:
    prompts = [model.codec.render(said(command)) for command in COMMANDS[1:]]
    ids = [model.codec.encode(prompt) for prompt in prompts]
    expected = [model.generate(command).text for command in COMMANDS[1:]]
    create = server.client().completions.create
    for given_prompts in (prompts, ids):
        answer = create(model=server.name, prompt=given_prompts, temperature=0, max_tokens=50)  # type: ignore[arg-type]
        assert [choice.text for choice in answer.choices] == expected
    stream = create(model=server.name, prompt=prompts[0], temperature=0, max_tokens=50, logprobs=1, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == expected[0]
    offsets = [chunk.logprobs.text_offset[0] for chunk in chunks[:-1] if chunk.logprobs]
    assert offsets == [expected[0].index(chunk.text, offset) for chunk, offset in zip(chunks, offsets)]


def test_the_model_has_a_name(server: Server) -> None:
    client = server.client()
    assert [card.id for card in client.models.list()] == [server.name]
    assert client.models.retrieve(server.name).id == server.name
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="another", messages=said("walk"))
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_tokens": 5000}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "go"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"extra_body": {"unheard_of": 1}}, None),
        ({"messages": said("walk " * 600)}, "messages"),
        ({"response_format": {"type": "json_object"}}, None),
        ({"logit_bias": {"1000": 1}}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(
    server: Server, changes: dict[str, Any], field: str | None, stream: bool
) -> None:
    request = {"model": server.name, "messages": said("walk"), "stream": stream, **changes}
    with pytest.raises(openai.BadRequestError) as refused:
        server.client().chat.completions.create(**request)
    if field is not None:
        assert str(refused.value.param).startswith(field)
    assert refused.value.type == "invalid_request_error"


def test_other_bodies_paths_and_methods_are_refused_in_the_same_form(server: Server) -> None:
    for path, body, status, headers in (
        (CHAT, b"x" * 100_001, 413, {}),
        (CHAT, b"{}", 415, {"content-type": "text/plain"}),
        (CHAT, b"\xff", 400, {}),
        (CHAT, b"[" * 50_000, 400, {}),
        ("/v1/nothing", b"{}", 404, {}),
        ("/v1/models", b"{}", 405, {}),
    ):
        found, _, answer = server.post(path, body, **headers)
        assert found == status
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool", "developer", "other"])},
    optional={"content": st.text(max_size=20) | JSON, "tool_calls": JSON, "name": JSON, "reasoning_content": JSON},
)
FIELDS = {
    "messages": st.lists(MESSAGE, max_size=3) | JSON,
    "prompt": JSON | st.lists(st.integers(-1, 30), max_size=4),
    "stream": st.booleans() | JSON,
    "n": st.integers(-1, 4) | JSON,
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3) | JSON,
    "seed": st.integers() | JSON,
    "temperature": st.floats(0, 2) | JSON,
    "top_p": st.floats(0, 1) | JSON,
    "presence_penalty": st.floats(-2, 2) | JSON,
    "logit_bias": st.dictionaries(st.integers(0, 30).map(str), st.floats(-100, 100), max_size=3) | JSON,
    "max_tokens": st.integers(1, 4) | JSON,
    "logprobs": st.booleans() | st.integers(0, 4) | JSON,
    "top_logprobs": st.integers(0, 3) | JSON,
    "tools": JSON,
    "tool_choice": st.sampled_from(["none", "auto", "required"]) | JSON,
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]) | JSON,
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["messages", "tools", "x"]), JSON, max_size=2) | JSON,
    "top_k": st.integers(-2, 30) | JSON,
    "min_p": st.floats(0, 1) | JSON,
    "repetition_penalty": st.floats(0, 3) | JSON,
}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from([CHAT, TEXT]), fields=st.fixed_dictionaries({}, optional=FIELDS), sound=st.booleans())
def test_no_body_is_answered_by_a_failure(server: Server, path: str, fields: dict[str, Any], sound: bool) -> None:
    needed = {CHAT: {"messages": said("walk")}, TEXT: {"prompt": "walk"}}[path] if sound else {}
    body = {"model": server.name, "max_tokens": 3, **fields, **needed}
    if path == TEXT and sound:
        body = {name: value for name, value in body.items() if name not in ("messages", "top_logprobs")}
    status, headers, answer = server.post(path, json.dumps(body).encode())
    assert status in (200, 400), answer
    if headers["content-type"].startswith("application/json"):
        json.loads(answer)
    else:
        assert b"server_error" not in answer
        assert answer.endswith(b"data: [DONE]\n\n") or b'"error"' in answer


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=100))
def test_no_bytes_are_answered_by_a_failure(server: Server, body: bytes) -> None:
    assert server.post(CHAT, body)[0] == 400


def test_eight_clients_each_get_their_own_answer(server: Server) -> None:
    requests = [{"text": COMMANDS[index % 4], "temperature": 1.5, "seed": index} for index in range(8)]
    alone = [ask(server, **request).choices[0].message.content for request in requests]
    barrier = threading.Barrier(8)

    def together(request: dict[str, Any]) -> list[str]:
        barrier.wait()
        return [ask(server, **request).choices[0].message.content for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for expected, answers in zip(alone, pool.map(together, requests)):
            assert answers == [expected] * 5


def test_requests_are_counted_and_logged(server: Server) -> None:
    before = server.metric('edge_tokens_total{kind="completion"}')
    ask(server, "jump twice")
    assert server.metric('edge_tokens_total{kind="completion"}') == before + 2
    assert server.metric("process_resident_memory_bytes") > 0
    record = server.records()[-1]
    assert record["path"] == CHAT
    assert record["completion_tokens"] == 2
    assert record["finish_reasons"] == ["stop"]
    assert 0 < record["queue_ms"] < record["time_to_first_token_ms"] < record["total_ms"]
    assert "jump" not in json.dumps(record)
