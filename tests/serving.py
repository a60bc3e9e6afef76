"""A rollout server of the standard library around a tiny model: the routes and fields of vLLM that prefiere uses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
from peft import PeftModel
from transformers import AutoModelForCausalLM

from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary

Reply = tuple[int, bytes]


class RolloutServer:
    """Serves a model folder, and the adapters that it is told to load, on this machine; without one, only failures.

    asked: every request, as route and body. behind: it answers from the weights of so many versions before, under the
    name that was asked. fails: what to answer a route with, in the place of the truth: a reply, or what becomes of one.
    """

    def __init__(self, model: Path | None = None):
        self.model, self.behind = model, 0
        self.adapters: dict[str, Any] = {}
        self.reloaded: list[Any] = []
        self.order: list[str] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.fails: dict[str, Callable[[Reply], Reply]] = {}
        self._lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({})

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: dict[str, Any]) -> None:
                route = self.path.removeprefix("/v1/")
                with outer._lock:
                    outer.asked.append((route, body))
                    status, said = outer._reply(route, body)
                    status, said = outer.fails.get(route, lambda r: r)((status, said))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def routes(self, route: str) -> list[dict[str, Any]]:
        """The bodies of the requests of one route."""
        return [body for name, body in self.asked if name == route]

    def _reply(self, route: str, body: dict[str, Any]) -> Reply:
        if route == "models":
            listed = [{"id": "base", "root": str(self.model)}, *({"id": n} for n in self.adapters)]
            return _json({"object": "list", "data": listed})
        if self.model is None:
            return 200, b""
        if route == "load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if route == "unload_lora_adapter":
            found = self.adapters.pop(body["lora_name"], None)
            return (200, b"Success") if found is not None else (404, b'{"error": {"message": "cannot be found"}}')
        if route == "/collective_rpc" and body["method"] == "reload_weights":
            self.reloaded.append(AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval())
            return _json({"results": [None]})
        if route == "/reset_prefix_cache":
            return 200, b""
        if route == "completions":
            known = body["model"] in ("base", *self.adapters)
            return self._complete(body) if known else (404, b"no such model")
        return 404, b"no such route"

    def _load(self, name: str, path: str) -> Reply:
        if name in self.adapters:
            return 400, b"has already been loaded"
        base = AutoModelForCausalLM.from_pretrained(self.model)
        self.adapters[name] = PeftModel.from_pretrained(base, path).eval().get_base_model()
        self.order.append(name)
        return 200, b"Success"

    def _complete(self, body: dict[str, Any]) -> Reply:
        model: Any
        if body["model"] == "base":
            given = self.reloaded[max(0, len(self.reloaded) - 1 - self.behind) :]
            model = given[0] if given else AutoModelForCausalLM.from_pretrained(self.model)
        else:
            place = max(0, self.order.index(body["model"]) - self.behind)
            model = self.adapters.get(self.order[place], self.adapters[body["model"]])
        sampling = Sampling(body["n"], body["temperature"], body["top_p"], body["max_tokens"], body["seed"])
        vocabulary = Vocabulary(tuple(body["stop_token_ids"]), tuple(int(t) for t in body["logit_bias"]))
        made = generate(model, [np.asarray(body["prompt"], np.int32)], sampling, vocabulary)
        choices = [
            {"index": i, "text": "", "finish_reason": "stop" if s.ended else "length", "token_ids": s.tokens.tolist(),
             "logprobs": {"token_logprobs": s.logp.tolist(), "tokens": [], "top_logprobs": [], "text_offset": []}}
            for i, s in enumerate(made)
        ]  # fmt: skip
        return _json({"object": "text_completion", "model": body["model"], "choices": choices})


def _json(value: Any) -> Reply:
    return 200, json.dumps(value).encode()
