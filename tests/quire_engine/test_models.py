"""Our models against transformers: logits, and the very tokens."""

from pathlib import Path

import pytest
import torch
from fakes.checkpoints import SHAPES, save_llama, tiny_folder
from transformers import LlamaForCausalLM

from quire_api import EngineConfig
from quire_api.footprint import ModelShape
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Request, RequestId, SamplingParams
from quire_engine.core.step import Chunk, StepPlan
from quire_engine.models import ARCHITECTURES
from quire_engine.models.weights import Weights
from quire_engine.ops.reference import reference_ops
from quire_engine.runtime.batch import build_batch
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import read_spec

CPU = torch.device("cpu")
BLOCK = 16
PROMPTS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 50]


def our_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """[T, vocabulary], the whole prompt in one chunk, in blocks that are out of order."""
    spec = read_spec(folder)
    with Weights(folder, torch.float32, CPU) as weights:
        model = ARCHITECTURES[spec.architecture](spec, weights, reference_ops(), CPU)
    cache = KVCache(spec.shape, 8, BLOCK, torch.float32, CPU)
    chunk = Chunk(
        request_id=RequestId(0), slot=0, start=0, tokens=tuple(tokens), follows=False, samples=True,
        blocks=(5, 2, 7, 0), params=SamplingParams(max_tokens=1),
    )  # fmt: skip
    with torch.inference_mode():
        return model.logits(model.forward(build_batch(StepPlan(chunks=(chunk,)), BLOCK, CPU), cache))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-4, f"relative to the largest logit, the error is {error:.2e}"


def generate(built: BuiltEngine, prompts: list[tuple[int, ...]], count: int, together: bool = True) -> list[list[int]]:
    """Greedy tokens of each prompt, in one batch or one after the other."""
    tokens: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=count, temperature=0.0)
        built.engine.add(Request(id=RequestId(number), prompt=prompt, params=params))
        while built.engine.has_work and (not together or number == len(prompts) - 1):
            for event in built.engine.step():
                if event.token is not None:
                    tokens[event.request_id].append(event.token)
    return tokens


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", PROMPTS)
def test_logits_of_a_random_llama_equal_transformers(shape: str, length: int, tmp_path: Path) -> None:
    oracle = save_llama(tmp_path, **SHAPES[shape])
    tokens = [(7 * i + 3) % 128 for i in range(length)]

    ours = our_logits(tmp_path, tokens)

    with torch.inference_mode():
        assert_close(ours, oracle(torch.tensor([tokens])).logits[0])


@pytest.mark.parametrize("shape", ["grouped", "untied", "theta"])
def test_greedy_tokens_of_a_random_llama_equal_transformers(shape: str, tmp_path: Path) -> None:
    oracle = save_llama(tmp_path, **SHAPES[shape])
    prompts = [tuple((5 * i + n) % 128 for i in range(length)) for n, length in enumerate(PROMPTS)]
    built = build_engine(EngineConfig(model=str(tmp_path), dtype="float32", kv_cache_gib=0.01))

    ours = generate(built, prompts, 24)

    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert tokens == theirs[0, len(prompt) :].tolist()


def test_logits_of_quire_tiny_equal_transformers() -> None:
    oracle = LlamaForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32).eval()
    tokens = [1, 300, 17, 900, 2, 511, 64, 32, 700, 3] * 6

    ours = our_logits(tiny_folder(), tokens)

    with torch.inference_mode():
        theirs = oracle(torch.tensor([tokens])).logits[0]
    assert float((ours - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("budget", [32, 48, 512])
@pytest.mark.parametrize("depth", [1, 2])
def test_32_requests_together_get_the_tokens_each_gets_alone(budget: int, depth: int) -> None:
    """Whatever the chunking, with a KV cache too small for all, one step ahead or not."""
    prompts = [tuple((11 * i + 3 * n) % 900 + 3 for i in range(2 + 3 * n)) for n in range(32)]
    alone = generate(
        build_engine(EngineConfig(model="builtin://quire-tiny", dtype="float32", kv_cache_gib=0.05)), prompts, 20, False
    )
    cache = 70 * BLOCK * 6 * 2 * 2 * 32 * 4 / 2**30  # 70 blocks: 32 prompts need 125
    config = EngineConfig(
        model="builtin://quire-tiny",
        dtype="float32",
        kv_cache_gib=cache,
        max_num_seqs=32,
        max_num_batched_tokens=budget,
    )
    built = build_engine(config, depth)

    together = generate(built, prompts, 20)

    assert together == alone


def test_sharded_weights_are_the_same_model(tmp_path: Path) -> None:
    oracle = save_llama(tmp_path, shards="100KB", **SHAPES["untied"])
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    ours = our_logits(tmp_path, [1, 2, 3])

    with torch.inference_mode():
        assert_close(ours, oracle(torch.tensor([[1, 2, 3]])).logits[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_footprint_counts_every_parameter(shape: str, tmp_path: Path) -> None:
    oracle = save_llama(tmp_path, **SHAPES[shape])

    counted = ModelShape.from_config(oracle.config.to_dict()).parameters

    assert counted == sum(p.numel() for p in oracle.parameters())


def test_footprint_is_the_size_of_the_shipped_file() -> None:
    shape = read_spec(tiny_folder()).shape
    header = 8 + int.from_bytes((tiny_folder() / "model.safetensors").read_bytes()[:8], "little")

    assert (tiny_folder() / "model.safetensors").stat().st_size - header == shape.weight_bytes("bfloat16")
    cache = KVCache(shape, 3, BLOCK, torch.bfloat16, CPU)
    allocated = sum(part.nbytes for index in range(shape.layers) for part in cache.layer(index))
    assert allocated == 3 * BLOCK * shape.kv_bytes_per_token("bfloat16")


def test_a_vocabulary_larger_or_smaller_than_the_tokenizers_is_no_harm(tmp_path: Path) -> None:
    """Qwen pads its matrices, fine-tunes add tokens: every row of the head has a text, if an empty one."""
    for size in (128, 2000):
        save_llama(tmp_path, **{**SHAPES["grouped"], "vocab_size": size})
        built = build_engine(EngineConfig(model=str(tmp_path), dtype="float32", kv_cache_gib=0.01))

        assert len(generate(built, [(1, 2, 3)], 50)[0]) == 50


def test_every_architecture_is_compared_with_transformers() -> None:
    """Add the comparison above when you add a family."""
    assert set(ARCHITECTURES) == {"LlamaForCausalLM"}
