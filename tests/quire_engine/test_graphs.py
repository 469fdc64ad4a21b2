"""Recorded steps without a GPU: what stands for a graph runs what was recorded again, on the arrays of then.

So whoever records a step's own arrays, or leaves something of an earlier step in those of the bucket, gets other tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.attending import ATTENTION_FORMS, Scene, batch_of
from fakes.checkpoints import save_case, tiny_folder
from fakes.interpreting import scalars_are_numbers
from fakes.running import greedy, run
from torch import Tensor

from quire_api import EngineConfig
from quire_engine import LLM, SamplingParams
from quire_engine.build import build_engine
from quire_engine.ops import Forward, Ops
from quire_engine.ops.reference import reference_ops
from quire_engine.ops.triton import triton_ops
from quire_engine.ops.triton.graphs import Graphs
from quire_engine.runtime.buckets import Bucket, bucket_of, buckets
from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.padding import PaddedBatch, has_single_tokens
from quire_engine.runtime.sizing import Sizes, Workspace, graph_bytes, plan_sizes, split_bytes
from quire_engine.spec import read_spec

CPU = torch.device("cpu")


def test_a_bucket_holds_the_step_and_is_the_smallest_that_does() -> None:
    assert bucket_of(1, 1) == Bucket(1, 512)
    assert bucket_of(9, 512) == Bucket(16, 512)
    assert bucket_of(33, 513) == Bucket(48, 2048)
    assert bucket_of(256, 8192) == Bucket(256, 8192)


@pytest.mark.parametrize(("rows", "longest"), [(0, 0), (513, 10), (256, 30_000)])
def test_a_step_that_is_too_large_has_none(rows: int, longest: int) -> None:
    assert bucket_of(rows, longest) is None


@pytest.mark.parametrize(("most", "longest"), [(1, 100), (7, 3000), (256, 131_072)])
def test_the_plan_of_the_memory_counts_every_bucket_that_can_come(most: int, longest: int) -> None:
    counted = set(buckets(most, longest))

    seen = {
        bucket_of(rows, length)
        for rows in range(1, most + 1)
        for length in (1, 512, 513, 2049, longest)
        if length <= longest
    }

    assert seen - {None} <= counted
    assert len(counted) < 80


def test_the_memory_of_recordings_is_planned_and_left_for_the_cache_without_them() -> None:
    shape = read_spec(tiny_folder()).shape

    def planned(workspace: Workspace | None) -> Sizes:
        return plan_sizes(
            shape, "bfloat16", cache_dtype="bfloat16", trained_len=4096, max_model_len=4096, block_size=16, max_num_seqs=64,
            max_num_batched_tokens=2048, kv_cache_gib=None, swap_space_gib=0, free_bytes=1 << 29, workspace=workspace,
        )  # fmt: skip

    plain, eager, recorded = (planned(workspace) for workspace in (None, split_bytes, graph_bytes))

    assert plain.step_bytes < eager.step_bytes < recorded.step_bytes
    assert plain.num_blocks > eager.num_blocks > recorded.num_blocks


class Again:
    """A graph that runs Python again. Like a graph it has its result in one place."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        out = torch.full_like(run(), float("nan"))

        def replay() -> None:
            self.replayed += 1
            out.copy_(run())

        return replay, out


def by_rows(ops: Ops) -> Ops:
    """Products row by row, as torch's own sum a row in an order which depends on how many there are."""

    def linear(x: Tensor, weight: Any, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
        return torch.cat([ops.linear(row, weight, bias, wide=wide) for row in x.split(1)])

    return replace(ops, linear=linear)


def outcomes(folder: Path | str, ops: Ops, requests: Iterable[Any], **options: Any) -> Any:
    config = EngineConfig(
        **{"model": str(folder), "device": "cpu", "dtype": "float32", "kv_cache_gib": 0.01, "max_num_seqs": 8,
           "max_num_batched_tokens": 32, **options}
    )  # fmt: skip
    built = build_engine(config, ops=ops, with_tokenizer=False)
    return {number: (each.tokens, each.logprobs) for number, each in run(built.engine, requests).items()}


def requests() -> list[Any]:
    """As many as end at different times, so that rows become nobody's; a prompt longer than a step comes among them."""
    return [
        greedy(n, [(7 * i + n) % 128 for i in range(length)], count, logprobs=1, temperature=0.7 * (n % 2), seed=n)
        for n, (length, count) in enumerate([(3, 30), (17, 9), (40, 25), (1, 40), (90, 14), (5, 2)])
    ]


@pytest.mark.parametrize("case", ["llama", "gemma2", "qwen3"])
def test_recorded_steps_give_the_tokens_and_logprobs_of_others_to_the_bit(case: str, tmp_path: Path) -> None:
    save_case(case, tmp_path)
    ops, graph = by_rows(reference_ops()), Again()

    seen = outcomes(
        tmp_path, replace(ops, recorded=lambda forward, rows: Graphs(forward, graph, Invariance())), requests()
    )

    assert seen == outcomes(tmp_path, ops, requests())
    assert graph.recorded >= 3
    assert graph.replayed > 20


def test_steps_are_recorded_when_their_size_comes_again_and_prompts_never(tmp_path: Path) -> None:
    save_case("llama", tmp_path)
    graph = Again()
    ops = replace(reference_ops(), recorded=lambda forward, rows: Graphs(forward, graph, Invariance()))

    outcomes(tmp_path, ops, [greedy(0, range(40), 2)])
    after_one = graph.recorded
    outcomes(tmp_path, ops, [greedy(0, range(40), 10)])

    assert after_one == 0  # a prompt in two pieces, and one step of one token
    assert (graph.recorded, graph.replayed) == (1, 8)


def test_a_pass_that_cannot_be_recorded_runs_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_case("llama", tmp_path)
    asked = []

    def refuse(run: Callable[[], Tensor]) -> Any:
        asked.append(len(run()))
        raise RuntimeError("called a synchronizing CUDA operation\nand more")

    seen = outcomes(
        tmp_path,
        replace(reference_ops(), recorded=lambda forward, rows: Graphs(forward, refuse, Invariance())),
        requests(),
    )

    assert seen == outcomes(tmp_path, reference_ops(), requests())
    assert len(asked) == len(set(asked)) > 1  # each size once
    assert "tokens of context are not recorded, and take longer: called a synchronizing CUDA operation" in caplog.text


def test_a_size_that_there_is_no_memory_for_leaves_the_others(tmp_path: Path) -> None:
    save_case("llama", tmp_path)
    graph, tried = Again(), []

    def sometimes(run: Callable[[], Tensor]) -> Any:
        tried.append(len(run()))
        if len(tried) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph(run)

    recorded = replace(reference_ops(), recorded=lambda forward, rows: Graphs(forward, sometimes, Invariance()))
    seen = outcomes(tmp_path, recorded, requests())

    assert seen == outcomes(tmp_path, reference_ops(), requests())
    assert len(tried) == len(set(tried)) > 2
    assert graph.recorded == len(tried) - 1
    assert graph.replayed > 10


def test_what_fails_for_another_reason_is_not_hidden(tmp_path: Path) -> None:
    save_case("llama", tmp_path)

    def fail(run: Callable[[], Tensor]) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    broken = replace(reference_ops(), recorded=lambda forward, rows: Graphs(forward, fail, Invariance()))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        outcomes(tmp_path, broken, requests())


@pytest.mark.parametrize("make", [reference_ops, triton_ops], ids=["reference", "triton"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_of_nobody_change_no_bit_of_attention_and_nothing_that_is_anybodys(
    make: Callable[[], Ops], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step of two in the bucket of four; a longer step went through the same arrays before."""
    scalars_are_numbers(monkeypatch)
    torch.manual_seed(0)
    scene, ops = Scene(ATTENTION_FORMS["window"], 16), make()
    _, filled = scene.filled(ops, torch.float32)
    nobodys = scene.num_blocks
    keys, values = (torch.cat([part, torch.zeros_like(part[:1])]) for part in filled)
    batch = batch_of(16, (scene.blocks[0], 149, 1), (scene.blocks[2], 76, 1))
    batch = replace(batch, tokens=torch.tensor([5, 6]))
    before = batch_of(16, *((blocks, n - 1, 1) for blocks, n in zip(scene.blocks, scene.lengths, strict=True)))
    padded = PaddedBatch(Bucket(4, 512), 16, nobodys, CPU)
    qkv = torch.randn(4, (scene.form.heads + 2 * scene.form.kv_heads) * scene.form.head_dim)
    as_they_are = keys.clone(), values.clone()

    padded.load(replace(before, tokens=torch.tensor([1, 2, 3])))
    padded.load(batch)
    query = ops.store_kv(qkv, scene.form, (keys, values), padded.batch)
    out = ops.attention(query, scene.form, (keys, values), padded.batch)

    expected_query = ops.store_kv(qkv[:2], scene.form, as_they_are, batch)
    expected = ops.attention(expected_query, scene.form, as_they_are, batch)
    assert has_single_tokens(padded.batch)
    assert torch.equal(out[:2], expected)
    for ours, theirs in zip((keys, values), as_they_are, strict=True):
        torch.testing.assert_close(ours[:nobodys], theirs[:nobodys], rtol=0, atol=0, equal_nan=True)
    assert keys[nobodys].abs().sum() > 0


def test_enforce_eager_records_nothing() -> None:
    """On a CPU as well, where it is the tape that is off."""

    def refuse(forward: Forward, rows: int) -> Forward:
        raise AssertionError("recorded")

    ops = replace(reference_ops(), recorded=refuse)
    requests = [greedy(0, [5, 6], 4)]

    seen = outcomes("builtin://quire-tiny", ops, requests, enforce_eager=True)
    taped = LLM("builtin://quire-tiny", device="cpu", dtype="float32", kv_cache_gib=0.05, skip_tokenizer_init=True)
    eager = LLM(
        "builtin://quire-tiny", device="cpu", dtype="float32", kv_cache_gib=0.05, skip_tokenizer_init=True,
        enforce_eager=True,
    )  # fmt: skip
    how = SamplingParams(temperature=0, max_tokens=20, logprobs=2)
    answers = [
        llm.generate({"prompt_token_ids": [5, 6, 7]}, how, use_tqdm=False)[0].outputs[0] for llm in (taped, eager)
    ]

    assert len(seen[0][0]) == 4
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == answers[1].logprobs
