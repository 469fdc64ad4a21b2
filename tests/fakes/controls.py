"""Streams beside which anything may happen: each gets the very tokens that it gets alone."""

import http.client
import json
import threading
from types import TracebackType
from typing import Any

from fakes.serving import Running

__all__ = ["Controls"]

PROMPT = {"model": "quire-tiny", "ignore_eos": True, "stream": True, "return_token_ids": True, "logprobs": 0}
ASKS: tuple[dict[str, Any], ...] = (
    {**PROMPT, "prompt": "<|im_start|>user\nTell me a", "max_tokens": 60, "temperature": 0},
    {**PROMPT, "prompt": "Once upon a time", "max_tokens": 40, "temperature": 1.3, "seed": 7},
    {**PROMPT, "prompt": [5, 6, 7] * 40, "max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "top_k": 50, "seed": 11},
)


class Controls:
    """While it is entered, one stream after another, each compared with what it was before that."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._alone = [self._tokens(ask) for ask in ASKS]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controls")
        self.compared = 0
        self.wrong: list[str] = []

    def __enter__(self) -> "Controls":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for ask, alone in zip(ASKS, self._alone, strict=True):
                try:
                    seen = self._tokens(ask)
                except (OSError, ValueError, KeyError, AssertionError, http.client.HTTPException) as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    return
                if seen != alone:
                    self.wrong.append(f"{seen} where alone there was {alone}")
                self.compared += 1

    def _tokens(self, ask: dict[str, Any]) -> list[tuple[int, float]]:
        """With their log probabilities."""
        link = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        try:
            link.request("POST", "/v1/completions", json.dumps(ask), {"content-type": "application/json"})
            answer = link.getresponse()
            lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        finally:
            link.close()
        assert answer.status == 200, answer.status
        assert lines[-1] == "[DONE]", lines[-1]
        choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
        tokens = [token for choice in choices for token in choice["token_ids"]]
        scores = [score for choice in choices for score in choice["logprobs"]["token_logprobs"]]
        return list(zip(tokens, scores, strict=True))
