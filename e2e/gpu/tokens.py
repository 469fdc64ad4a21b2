"""Does the engine write the same tokens on this device as it does elsewhere, and with other kernels?

Small models in float32, greedy: quire-tiny on the CPU, and made-up ones of several families with the reference's kernels on the
same device, for made-up weights differ from one kind of device to another.
"""

from pathlib import Path
from typing import Any

from loads import build
from shapes import LLAMA, SMALL, write

from quire_engine.build import BuiltEngine
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.ops.reference import reference_ops

__all__ = ["FAMILIES", "compare"]

PROMPTS = [tuple((11 * i + 3 * n) % 200 + 3 for i in range(2 + 9 * n)) for n in range(16)]
TOKENS = 48
ROOM = {"kv_cache_gib": 0.2, "max_num_seqs": 64}
GEMMA = {
    **LLAMA,
    "head_dim": 16,
    "sliding_window": 24,
    "query_pre_attn_scalar": 16,
    "hidden_activation": "gelu_pytorch_tanh",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, **SMALL, "intermediate_size": 96, "max_position_embeddings": 1024},
    "qwen3": {
        **LLAMA, **SMALL, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16,
        "intermediate_size": 96, "max_position_embeddings": 1024,
    },
    "gemma2": {
        **GEMMA, **SMALL, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "intermediate_size": 96,
        "max_position_embeddings": 1024, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
    },
}  # fmt: skip


def compare(device: str, folder: Path) -> dict[str, dict[str, int]]:
    """How many of the sequences are equal, of how many; recorded steps and others are both looked at."""
    tiny = {"load_format": "auto", **ROOM}
    expected = _written(build("builtin://quire-tiny", "cpu", "float32", **tiny))
    found = {}
    for name, options in (("quire-tiny", {}), ("quire-tiny, eager", {"enforce_eager": True})):
        seen = _written(build("builtin://quire-tiny", device, "float32", **tiny, **options))
        found[name] = _equal(seen, expected)
    for family, config in FAMILIES.items():
        model = write(folder / family, config)
        plain = _written(build(model, device, "float32", reference_ops(), **ROOM))
        found[family] = _equal(_written(build(model, device, "float32", **ROOM)), plain)
    return found


def _equal(seen: list[list[int]], expected: list[list[int]]) -> dict[str, int]:
    return {"equal": sum(s == e for s, e in zip(seen, expected, strict=True)), "of": len(expected)}


def _written(built: BuiltEngine) -> list[list[int]]:
    """All prompts in one batch, which shrinks: some end before others."""
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        params = TokenParams(max_tokens=TOKENS - number, temperature=0.0)
        built.engine.add(Request(id=RequestId(number), prompt=prompt, params=params))
    while built.engine.has_work:
        events = built.engine.step()
        for number, token in zip(events.ids, events.tokens, strict=True):
            tokens[number].append(token)
    return tokens
