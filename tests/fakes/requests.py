"""Requests at random, of a seed: most of them good, many with a field or two that are not, some with a broken body."""

import json
import random
from typing import Any

__all__ = ["a_request"]

HELLO = {"role": "user", "content": "Hello!"}
TOOL = {
    "type": "function",
    "function": {"name": "get", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}},
    "required": ["name"],
    "additionalProperties": False,
}

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, 2**31, -(2**63), 2**64, 10**400, float("nan"), float("inf"), -0.0, 1e-320, "", "x", "\ud800",
    "\x00", "漢字 🙂", "a" * 5000, [], [[]], [None], [0] * 2000, ["a"] * 50, {}, {"a": {}}, {"type": "object"}, [{}], {"\ud800": [1]},
]  # fmt: skip
GRAMMARS: list[Any] = [
    {"json": PERSON}, {"json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 4}}, {"regex": "[a-f]{2,9}"}, {"regex": "("},
    {"choice": ["yes", "no"]}, {"choice": []}, {"grammar": 'root ::= "a" root | "b"'}, {"grammar": "root ::= root"}, {"json_object": True},
    {"json": {"type": "nothing"}}, {"json": {"$ref": "#/nowhere"}}, {"grammar": 'root ::= root root | "a"'},
]  # fmt: skip
SAMPLED: dict[str, list[Any]] = {
    "n": [1, 2, 3, 8],
    "max_tokens": [1, 2, 7, 30, 200],
    "temperature": [0, 0.3, 1.0, 2.0, 100],
    "top_p": [0.1, 0.9, 1.0],
    "top_k": [-1, 0, 1, 50, 5000],
    "min_p": [0.0, 0.1, 1.0],
    "seed": [0, 1, -5, 2**62],
    "stop": ["a", ["e", "\n"], ["zzz"], "Hello"],
    "stop_token_ids": [[5], [1, 2, 3]],
    "include_stop_str_in_output": [True],
    "ignore_eos": [True, False],
    "min_tokens": [0, 3],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [0.5],
    "repetition_penalty": [0.5, 1.3],
    "logit_bias": [{"70": 100}, {"5": -100, "6": 3.5}, {}],
    "allowed_token_ids": [[5, 6, 7], [70], list(range(300, 400))],
    "bad_words": [["the", "a"], ["\n"]],
    "skip_special_tokens": [False],
    "truncate_prompt_tokens": [1, 5],
    "prompt_logprobs": [0, 3],
    "response_format": [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}],
    "structured_outputs": GRAMMARS,
    "priority": [-3, 9],
    "cache_salt": ["one", "other"],
    "batch_invariant": [True, False],
    "return_token_ids": [True],
    "return_tokens_as_token_ids": [True],
    "stream_options": [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    "user": ["me"],
    "nobody_knows": [1],
    "suffix": ["x"],
    "model": ["quire-tiny", "gpt-9"],
}  # fmt: skip
COMPLETION: dict[str, list[Any]] = {
    **SAMPLED,
    "prompt": ["a", "", "Once upon a time", [5, 6, 7], ["a", "b"], [[1], [2, 3]], "word " * 300, "word " * 3000, [5] * 2047, [1024], ["a", 5]],
    "best_of": [1, 2],
    "echo": [True],
    "logprobs": [0, 5, 20],
    "add_special_tokens": [False],
}  # fmt: skip
CHAT: dict[str, list[Any]] = {
    **SAMPLED,
    "messages": [
        [HELLO], [{"role": "system", "content": "Be brief."}, HELLO], [], [{"role": "alien", "content": "x"}], [{"role": "user"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "user", "content": [{"type": "image_url"}]}],
        [HELLO, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "get", "arguments": "{"}}]}, HELLO],
        [{"role": "user", "content": "word " * 500}], [HELLO, {"role": "assistant", "content": "Hello! I"}],
    ],
    "max_completion_tokens": [1, 20],
    "logprobs": [True],
    "top_logprobs": [0, 5],
    "tools": [[TOOL], [TOOL, TOOL], []],
    "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "get"}}],
    "parallel_tool_calls": [False],
    "add_generation_prompt": [False],
    "continue_final_message": [True],
    "chat_template_kwargs": [{"enable_thinking": False}, {"messages": 1}, {"range": 5}],
    "reasoning_effort": ["low", "none"],
    "echo": [True],
}  # fmt: skip
TOKENIZE: dict[str, list[Any]] = {
    "prompt": COMPLETION["prompt"], "messages": CHAT["messages"], "add_special_tokens": [True], "return_token_strs": [True],
}  # fmt: skip
DETOKENIZE: dict[str, list[Any]] = {"tokens": [[], [5, 6], [1023], [1024], [-1]]}
EMBEDDINGS: dict[str, list[Any]] = {
    "input": ["a", ["a", "b"], [1, 2], []],
    "dimensions": [3],
    "encoding_format": ["base64"],
}

ENDPOINTS: list[tuple[int, str, dict[str, list[Any]], dict[str, Any]]] = [  # weight, path, fields, those that are always there
    (8, "/v1/completions", COMPLETION, {"model": "quire-tiny", "prompt": "a", "max_tokens": 12}),
    (8, "/v1/chat/completions", CHAT, {"model": "quire-tiny", "messages": [HELLO], "max_tokens": 12}),
    (1, "/v1/embeddings", EMBEDDINGS, {"model": "quire-tiny", "input": "a"}),
    (1, "/tokenize", TOKENIZE, {"prompt": "a"}),
    (1, "/detokenize", DETOKENIZE, {"tokens": [5]}),
]  # fmt: skip


def a_request(dice: random.Random) -> tuple[str, bytes]:
    """Path and body."""
    weights = [weight for weight, *_ in ENDPOINTS]
    _, path, fields, base = dice.choices(ENDPOINTS, weights)[0]
    body = dict(base)
    for name in dice.sample(sorted(fields), dice.choice([0, 1, 1, 2, 3, 5]) % (len(fields) + 1)):
        body[name] = dice.choice(JUNK if dice.random() < 0.12 else fields[name])
    if "max_tokens" in base and dice.random() < 0.5:
        body["stream"] = True
    data = json.dumps(body).encode()
    return path, _broken(dice, data) if dice.random() < 0.06 else data


def _broken(dice: random.Random, data: bytes) -> bytes:
    kind, at = dice.randrange(4), dice.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + dice.choice([b"[" * 3000, b'"', b"\\u", b"{}", b"9" * 5000]) + data[at:]
    return dice.randbytes(dice.randrange(200))
