"""What a rollout server sends is believed in nothing that can be checked: each fault is one line, on a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest

from prefiere.asked import endpoint
from prefiere.asked.endpoint import EndpointError
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.sample.served import all_answers
from prefiere.sample.server import SERVER_KEY, Completed, Server
from serving import RolloutServer

PROMPT = np.asarray([5, 6, 7], np.int32)
ENDS = Vocabulary((2, 3), (0,))
TWO = Sampling(2, 0.7, 1.0, 4, seed=9)
ANSWERS: list[dict[str, Any]] = [
    {"token_ids": [8, 9, 2], "logprobs": {"token_logprobs": [-0.5, -1.0, -0.25]}, "finish_reason": "stop"},
    {"token_ids": [8, 8, 8, 8], "logprobs": {"token_logprobs": [-1, -2.0, 0.0, -3.5]}, "finish_reason": "length"},
]


@pytest.fixture
def server(monkeypatch) -> Iterator[RolloutServer]:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)
    with RolloutServer() as made:
        yield made


def says(server: RolloutServer, route: str, body: Any, status: int = 200) -> None:
    said = body if isinstance(body, bytes) else json.dumps(body).encode()
    server.fails[route] = lambda truth: (status, said)


def complete(server: RolloutServer) -> Any:
    return Server.named(server.url).complete("p-1", PROMPT, TWO, ENDS, size=10, seed=77)


def test_ids_go_out_and_ids_with_log_probs_come_back(server, monkeypatch) -> None:
    says(server, "completions", {"model": "p-1", "choices": ANSWERS})
    first, second = complete(server)
    assert (first.tokens.tolist(), first.logp.tolist(), first.ended) == ([8, 9, 2], [-0.5, -1.0, -0.25], True)
    assert (second.tokens.tolist(), second.ended) == ([8, 8, 8, 8], False)
    (body,) = server.routes("completions")
    assert (body["model"], body["prompt"], body["n"], body["max_tokens"]) == ("p-1", [5, 6, 7], 2, 4)
    assert (body["temperature"], body["top_p"], body["seed"], body["return_token_ids"]) == (0.7, 1.0, 77, True)
    assert (body["stop_token_ids"], body["logit_bias"]) == ([2, 3], {"0": -100.0})
    # what vLLM would take from the model's generation_config.json
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)


def changed(**fields: Any) -> dict[str, Any]:
    return {"model": "p-1", "choices": [{**ANSWERS[0], **fields}, ANSWERS[1]]}


def logps(*values: Any) -> dict[str, Any]:
    return changed(logprobs={"token_logprobs": list(values)})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "p-0", "choices": ANSWERS}, "answers as 'p-0', and p-1 was asked"),
        ({"choices": ANSWERS}, "answers as 'None'"),
        ({"model": "p-1", "choices": ANSWERS[:1]}, "gives 1 answers to a prompt, and 2 were asked"),
        ({"model": "p-1", "choices": "two"}, "gives no answers"),
        (changed(token_ids=None), "no token_ids"),
        (changed(token_ids=[8, True, 2]), "no token_ids"),
        (changed(token_ids=[]), "has 0 tokens, and 1 to 4"),
        (changed(token_ids=[8] * 5), "has 5 tokens"),
        (changed(token_ids=[8, 10, 2]), "token 10 of an answer is none that the model may write"),
        (changed(token_ids=[8, -1, 2]), "token -1"),
        (changed(token_ids=[8, 0, 2]), "token 0"),  # padding
        (changed(token_ids=[8, 3, 2]), "goes on after token 3, which ends one"),
        (changed(token_ids=[8, 9, 9]), r"stops \('stop'\) at token 9, which does not end one"),
        (logps(-1.0, -1.0), "3 tokens has 2 log-probs"),
        (changed(logprobs=None), "3 tokens has no log-probs"),
        (logps(-1.0, float("nan"), -1.0), "nan is no log-prob"),
        (logps(-1.0, float("-inf"), -1.0), "-inf is no log-prob"),
        (logps(-1.0, None, -1.0), "None is no log-prob"),
        (logps(-1.0, 0.5, -1.0), "0.5 is no log-prob"),
        (changed(finish_reason="\x1b[31mabort", token_ids=[8, 9, 9]), r"stops \('⟨U\+001B⟩\[31mabort'\)"),
        ([1, 2], "is no answer of completions"),
        (b"<html>\x1b]0;title\x07", "is no answer of completions"),
        (b"[" * 100_000, "is no answer of completions"),
        (b" " * (2 << 20), "its answer is longer than"),
    ],
    ids=lambda x: None if isinstance(x, str) else "",
)  # fmt: skip
def test_a_malformed_answer_is_one_line(server, body, said) -> None:
    says(server, "completions", body)
    with pytest.raises(EndpointError, match=said) as e:
        complete(server)
    assert "\n" not in str(e.value)
    assert not any(ord(c) < 32 for c in str(e.value))
    assert server.url in str(e.value)


@pytest.mark.parametrize(
    ("route", "call", "status", "said"),
    [
        ("load_lora_adapter", lambda s: s.load("p-1", "/x"), 404, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ("load_lora_adapter", lambda s: s.load("p-1", "/x"), 503, "no answer after 5 tries .503"),
        ("unload_lora_adapter", lambda s: s.unload("p-1"), 503, "no answer after a try"),
        ("models", lambda s: s.models(), 401, f"Put its key into {SERVER_KEY}"),
        ("models", lambda s: s.models(), 404, "end with /v1"),
        ("models", lambda s: s.models(), 200, "lists no models"),
    ],
)
def test_a_server_that_refuses_is_one_line_with_what_to_do(
    server, route: str, call: Callable[[Server], Any], status: int, said: str
) -> None:
    says(server, route, {"object": "error", "message": "two\nlines \x1b[2J"}, status)
    with pytest.raises(EndpointError, match=said) as e:
        call(Server.named(server.url))
    assert not any(ord(c) < 32 for c in str(e.value))


def test_its_key_is_sent_and_its_address_holds_none(server, monkeypatch) -> None:
    monkeypatch.setenv(SERVER_KEY, "s3cret")
    made = Server.named(server.url)
    assert list(made.models()) == ["base"]
    assert "s3cret" not in repr(made)
    for wrong, said in (("localhost:8000", "no address"), ("http://u:p@host/v1", f"its key goes into {SERVER_KEY}")):
        with pytest.raises(EndpointError, match=said) as e:
            Server.named(wrong)
        assert "u:p" not in str(e.value)


def test_nobody_waits_for_answers_that_are_on_their_way() -> None:
    """Neither where one of them fails, nor at the end of the process; and no more are asked for."""
    asked, hangs, answered = [], Event(), []

    def ask(place: int, number: int) -> list[Completed]:
        asked.append((place, number, current_thread().daemon))
        if place == 1:
            answered.append(hangs.wait(10))
        while len(asked) < 2:
            hangs.wait(0.001)
        raise EndpointError("gone")

    with pytest.raises(EndpointError, match="gone"):
        all_answers(ask, [7, 8, 9, 10], 2, 0, None)
    assert not answered
    hangs.set()
    assert sorted(asked) == [(0, 7, True), (1, 8, True)]
