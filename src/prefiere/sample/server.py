"""One rollout server: an OpenAI-compatible completions endpoint as vLLM has it. Token ids in; ids and log-probs out.

What it sends is checked before anything is learnt from it. Whatever can be told from a single answer is told here; that
the answer comes from the right weights, its log-probs tell (`served`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefiere.asked.endpoint import Address, EndpointError
from prefiere.asked.language import count_of
from prefiere.files import short, visible
from prefiere.sample.sampling import Sampling, Vocabulary

SERVER_KEY = "PREFIERE_ROLLOUTS_KEY"
"""The environment variable that holds the servers' key. It is sent, and written nowhere."""
SERVER_EXAMPLE = "http://host:8000/v1"
_SLOWEST = 3600.0  # seconds: an answer comes when its last token is drawn, and may have waited in a queue
_LETTING_GO = 30.0  # seconds: a run that ends does not wait for a server that hangs
_SMALL = 1 << 20  # bytes of an answer beyond its tokens
_PER_TOKEN = 1024  # bytes of an answer for each of its tokens: id, text, log-prob, the likeliest tokens
_LIKELIER = 1e-3  # how far above 0 rounding may put a log-prob, in nats
_AFTER = "The run can go on from its checkpoint once the server is back."
_LOADING = (
    " Start it with --enable-lora --max-loras 2 --max-lora-rank R, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its "
    "environment."
)
_RELOADING = " Start it with VLLM_SERVER_DEV_MODE=1 in its environment, or train an adapter: lora=true."


@dataclass(frozen=True, slots=True)
class Completed:
    """tokens: int32 [L]. logp: float32 [L], nats. ended: its last token is one that ends an answer."""

    tokens: np.ndarray
    logp: np.ndarray
    ended: bool


@dataclass(frozen=True, slots=True)
class Server:
    """A server at an address, which serves the base of the policy and takes adapters, or other weights of the base."""

    address: Address

    @classmethod
    def named(cls, url: str) -> Server:
        """From what a user wrote. Raises EndpointError for what is no address."""
        return cls(Address.read(url, SERVER_KEY, SERVER_EXAMPLE))

    @property
    def name(self) -> str:
        """What messages call it."""
        return visible(self.address.url)

    def models(self) -> dict[str, str]:
        """The names under which it answers, of its base and of the adapters that it has loaded, and where each was read
        from, as far as it says. Raises EndpointError."""
        found = self._json("models", None, _SMALL, hints={404: " Does its address end with /v1?"})
        listed = found.get("data")
        rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
        if not rows or not all(isinstance(row.get("id"), str) for row in rows):
            raise EndpointError(f"{self.name}: it lists no models, so that it is no server of them.")
        return {row["id"]: str(row.get("root") or row["id"]) for row in rows}

    def load(self, name: str, folder: Path) -> None:
        """Have it load an adapter from a folder that it can read, under a name. Raises EndpointError."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self._ask("load_lora_adapter", body, _SMALL, hints={400: _LOADING, 404: _LOADING})

    def unload(self, name: str) -> None:
        """Have it forget an adapter. Raises EndpointError."""
        self._ask("unload_lora_adapter", {"lora_name": name}, _SMALL, tries=1, slowest=_LETTING_GO)

    def reload(self, folder: Path) -> None:
        """Have it read all weights of its base anew from a folder that it can read, and forget what it has computed of
        prompts. Raises EndpointError."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        self._ask("/collective_rpc", body, _SMALL, hints={404: _RELOADING})
        self._ask("/reset_prefix_cache", {}, _SMALL, hints={404: _RELOADING})

    def complete(
        self, name: str, prompt: np.ndarray, sampling: Sampling, vocabulary: Vocabulary, *, size: int, seed: int
    ) -> list[Completed]:
        """``sampling.samples`` answers of one of its models to a prompt (int32 ids [T]).

        size: token ids that the model has. seed: of these answers (``sampling.seed`` is of all prompts). Raises
        EndpointError for an answer that is none, and ValueError for an empty prompt.
        """
        if len(prompt) == 0:
            raise ValueError("a prompt has no tokens: there is nothing to continue")
        body = _request(name, prompt, sampling, vocabulary, seed)
        room = sampling.samples * (sampling.max_new_tokens * _PER_TOKEN + len(prompt) * 16) + _SMALL
        found = self._json("completions", body, room)
        try:
            return _answers(found, name, sampling, vocabulary, size)
        except _Malformed as e:
            raise EndpointError(f"{self.name}: {e}. {_AFTER}") from None

    def _json(self, route: str, body: dict[str, Any] | None, largest: int, **how: Any) -> dict[str, Any]:
        answer = self._ask(route, body, largest, **how)
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            said = visible(short(answer[:80].decode(errors="replace")))
            raise EndpointError(f"{self.name}: {said} is no answer of {route}. {_AFTER}")
        return found

    def _ask(self, route: str, body: dict[str, Any] | None, largest: int, **how: Any) -> bytes:
        how = {"slowest": _SLOWEST} | how
        return self.address.ask(route, body, name=self.name, largest=largest, after=_AFTER, **how)


def _request(name: str, prompt: np.ndarray, sampling: Sampling, vocabulary: Vocabulary, seed: int) -> dict[str, Any]:
    """A request of /v1/completions. What a server would take from the model's generation_config.json is said: such
    defaults (top_k, a repetition penalty) would change the distribution."""
    return {
        "model": name,
        "prompt": [int(t) for t in prompt],
        "n": sampling.samples,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "ignore_eos": True,
        "stop_token_ids": list(vocabulary.eos_ids),
        "logit_bias": {str(t): -100.0 for t in vocabulary.forbidden},
    }


class _Malformed(ValueError):
    """What is wrong with an answer."""


def _answers(
    found: dict[str, Any], name: str, sampling: Sampling, vocabulary: Vocabulary, size: int
) -> list[Completed]:
    if found.get("model") != name:
        raise _Malformed(f"it answers as {short(visible(str(found.get('model'))))}, and {name} was asked")
    choices = found.get("choices")
    if not isinstance(choices, list) or len(choices) != sampling.samples:
        count = len(choices) if isinstance(choices, list) else "no"
        raise _Malformed(f"it gives {count} answers to a prompt, and {sampling.samples} were asked")
    return [_answer(c, sampling.max_new_tokens, vocabulary, size) for c in choices]


def _answer(choice: Any, most: int, vocabulary: Vocabulary, size: int) -> Completed:
    known = choice if isinstance(choice, dict) else {}
    tokens = known.get("token_ids")
    if not isinstance(tokens, list) or not all(type(t) is int for t in tokens):
        raise _Malformed("its answers have no token_ids: vLLM gives them from 0.10.2 on")
    if not 1 <= len(tokens) <= most:
        raise _Malformed(f"an answer has {count_of(len(tokens), 'token')}, and 1 to {most} were asked")
    outside = [t for t in tokens if not 0 <= t < size or t in vocabulary.forbidden]
    if outside:
        raise _Malformed(f"token {outside[0]} of an answer is none that the model may write: it has {size}")
    told = known.get("logprobs")
    logps = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(logps, list) or len(logps) != len(tokens):
        count = len(logps) if isinstance(logps, list) else "no"
        raise _Malformed(f"an answer of {count_of(len(tokens), 'token')} has {count} log-probs")
    for x in logps:
        if type(x) not in (int, float) or not math.isfinite(x) or x > _LIKELIER:
            raise _Malformed(f"{short(x)} is no log-prob of a token that was drawn")
    ends = [t in vocabulary.eos_ids for t in tokens]
    if any(ends[:-1]):
        raise _Malformed(f"an answer goes on after token {tokens[ends.index(True)]}, which ends one")
    if not ends[-1] and known.get("finish_reason") != "length":
        why = short(visible(str(known.get("finish_reason"))))
        raise _Malformed(f"an answer stops ({why}) at token {tokens[-1]}, which does not end one")
    return Completed(np.asarray(tokens, np.int32), np.asarray(logps, np.float32), ends[-1])
