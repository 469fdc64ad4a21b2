"""Several ranks over gloo: the tokens of one process, and what becomes of the others when one ends."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoints import save_case, save_llama, write_embedder
from fakes.quantized import save_quantized
from fakes.running import Outcome, greedy, run
from fakes.serving import Running, children, serving, ticks
from safetensors.torch import load_file, save_file

from quire_api import EngineConfig
from quire_engine import LLM, SamplingParams, StructuredOutputs
from quire_engine.build import BuiltEngine, build_engine, build_model
from quire_engine.core.request import Request
from quire_engine.errors import EXIT_HUNG, ConfigFailure, DeviceFailure, EngineFailure, MemoryFailure
from quire_engine.models.weights import Weights
from quire_engine.runtime.machine import device_of
from quire_engine.runtime.ranks import Part, Ranks, check_division
from quire_engine.runtime.sizing import share_of
from quire_engine.spec import read_spec

SIZES = {"heads": 8, "kv_heads": 4, "intermediate": 96, "vocabulary": 100, "layers": 5}


@contextlib.contextmanager
def built(
    folder: Path | str, tensor: int = 1, stages: int = 1, lost: Any = None, **options: Any
) -> Iterator[BuiltEngine]:
    config = EngineConfig(
        **{
            "model": str(folder), "dtype": "float32", "device": "cpu", "kv_cache_gib": 0.01, "max_num_seqs": 8,
            "max_num_batched_tokens": 24, "tensor_parallel_size": tensor, "pipeline_parallel_size": stages, **options,
        }
    )  # fmt: skip
    engine = build_engine(config, with_tokenizer=False, lost=lost)
    try:
        yield engine
    finally:
        if engine.crew:
            engine.crew.close()


def requests() -> list[Request]:
    """Prompts of less than a block and of several chunks, greedy and drawn by seed; one is scored."""
    lengths = (1, 16, 17, 50, 90)
    return [
        greedy(
            n, [(7 * i + n // 2) % 128 for i in range(length)], 20, temperature=0.8 * (n % 2), seed=n, logprobs=1,
            prompt_logprobs=1 if n == 3 else None,
        )
        for n, length in enumerate(lengths)
    ]  # fmt: skip


def tokens(outcomes: dict[int, Outcome]) -> dict[int, list[int]]:
    return {number: outcome.tokens for number, outcome in outcomes.items()}


def save(case: str, folder: Path) -> None:
    """`uneven`: ranks get unequal parts of its vocabulary, and its head is not its embedding."""
    if case == "uneven":
        save_llama(folder, vocab_size=130, tie_word_embeddings=False)
    elif case == "awq":
        save_quantized(case, folder)
    else:
        save_case(case, folder)


SHAPES = [
    ("llama", 2, 1), ("llama", 1, 2), ("uneven", 4, 1), ("qwen3", 2, 1), ("gemma2", 2, 2), ("mixtral", 2, 1), ("qwen3-moe", 2, 2),
    ("gpt2", 2, 1), ("bloom", 2, 2), ("gpt-oss", 2, 1), ("awq", 2, 1),
    ("deepseek-v2", 2, 2), ("deepseek-v3", 2, 1),
]  # fmt: skip


@pytest.mark.parametrize(("case", "tensor", "stages"), SHAPES)
def test_ranks_give_the_tokens_of_one_process(case: str, tensor: int, stages: int, tmp_path: Path) -> None:
    """Prompts in chunks, all together, then alone and found in the cache: the sums of a row do not depend on the batch."""
    save(case, tmp_path)
    with built(tmp_path) as one:
        expected = run(one.engine, requests())

    with built(tmp_path, tensor, stages) as several:
        together = run(several.engine, requests())
        again = run(several.engine, requests(), together=False)

    assert tokens(together) == tokens(expected)
    assert [outcome.logprobs for outcome in again.values()] == [outcome.logprobs for outcome in together.values()]
    assert any(outcome.cached for outcome in again.values())
    for ours, theirs in zip(together[3].prompt_logprobs, expected[3].prompt_logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    if tensor > 1 and not case.startswith("deepseek"):  # of which every rank has all that is cached
        assert several.sizes.num_blocks > one.sizes.num_blocks  # of the same memory each


@pytest.mark.parametrize(
    ("ranges", "whole"),
    [(((0, 12),), True), (((0, 4), (4, 12)), True), (((4, 12), (0, 4)), False), (((0, 4),), False), ((), False)],
)
def test_a_part_is_whole_if_it_is_all_in_order(ranges: tuple[tuple[int, int], ...], whole: bool) -> None:
    assert Part(12, ranges).is_whole is whole


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_every_head_and_row_is_somebodys(tensor: int) -> None:
    ranks = [Ranks(tensor, place) for place in range(tensor)]

    heads = [i for each in ranks for start, stop in each.share(8, 4).ranges for i in range(start, stop)]
    rows = [i for each in ranks for start, stop in each.rows(1003).ranges for i in range(start, stop)]

    assert heads == list(range(32))
    assert rows == list(range(1003))
    for place, each in enumerate(ranks):  # the key head that our query heads read
        first_query_head = each.share(8).start
        assert each.share(2).start <= first_query_head // 4 < each.share(2).start + each.share(2).size, place


def test_every_layer_is_in_one_stage_and_the_vocabulary_in_the_first() -> None:
    stages = [Ranks(2, 0, 3, stage) for stage in range(3)]

    assert [list(each.layers(7)) for each in stages] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [each.rows(100).size for each in stages] == [50, 0, 0]


def test_a_rank_has_a_share_of_each_expert(tmp_path: Path) -> None:
    save_case("qwen3-moe", tmp_path)
    shape = replace(read_spec(tmp_path).shape, vocabulary=0)

    assert 1 <= 2 * share_of(shape, 2, 1).parameters / shape.parameters < 1.1  # norms and routers are whole
    assert share_of(shape, 1, 3).parameters == pytest.approx(shape.parameters / 3, rel=0.01)


@pytest.mark.parametrize(
    ("tensor", "stages", "says"),
    [
        (
            3,
            1,
            "--tensor-parallel-size 3 does not divide the model's 8 attention heads, 4 key-value .*: take 1, 2, 4 or 8$",
        ),
        (2, 6, "--pipeline-parallel-size 6 is more than the model's 5 layers"),
    ],
)
def test_a_model_that_cannot_be_divided_so_is_refused(tensor: int, stages: int, says: str) -> None:
    with pytest.raises(ConfigFailure, match=says):
        check_division(tensor=tensor, stages=stages, **SIZES)


@pytest.mark.parametrize(
    ("tensor", "changed", "says"),
    [
        (4, {"kv_heads": 3, "heads": 12}, "3 key-value heads and 96 columns .*: take 1, 3, 6 or 12$"),
        (8, {"intermediate": 100}, "100 columns of the feed-forward"),
        (8, {"vocabulary": 9}, "too many for a vocabulary of 9"),
    ],
)
def test_sizes_that_ranks_cannot_share_are_named(tensor: int, changed: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigFailure, match=says):
        check_division(tensor=tensor, stages=1, **{**SIZES, **changed})


def test_fewer_key_heads_than_ranks_are_kept_several_times() -> None:
    check_division(tensor=8, stages=1, **SIZES)

    assert [Ranks(8, place).share(4).start for place in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_more_ranks_than_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    with pytest.raises(DeviceFailure, match="is 4 GPUs, and torch sees 3 here"):
        device_of("auto", 4, 0)


def test_a_model_for_embeddings_is_not_divided(tmp_path: Path) -> None:
    config = EngineConfig(model=str(write_embedder(tmp_path)), tensor_parallel_size=2)

    with pytest.raises(ConfigFailure, match="embeddings are made by one rank"):
        build_model(config)


def test_a_part_of_a_tensor_is_read_as_if_cut_from_it(tmp_path: Path) -> None:
    flat, deep = torch.randn(8, 6), torch.randn(3, 8, 6)
    save_file({"flat": flat, "deep": deep}, tmp_path / "model.safetensors")
    part = Part(8, ((1, 3), (5, 6)))
    rows = [1, 2, 5]

    with Weights(tmp_path, torch.float32, torch.device("cpu")) as weights:
        taken = weights.take("flat", (8, 6), part=part)
        columns = weights.take("flat", (8, 6), part=Part(6, ((4, 6),)), dim=1)
        stacked = weights.stacked(["flat", "flat"], [(8, 6)] * 2, parts=[part, None])
        inner = list(weights.parts("deep", (3, 8, 6), part=part))
        last = list(weights.parts("deep", (3, 8, 6), part=Part(6, ((0, 2),)), dim=2))

    assert torch.equal(taken, flat[rows])
    assert torch.equal(columns, flat[:, 4:])
    assert torch.equal(stacked, torch.cat([flat[rows], flat]))
    assert torch.equal(torch.stack(inner), deep[:, rows])
    assert torch.equal(torch.stack(last), deep[:, :, :2])


def test_an_llm_has_ranks_for_as_long_as_it_is_there() -> None:
    options = {"dtype": "float32", "device": "cpu", "kv_cache_gib": 0.05}
    how = SamplingParams(max_tokens=12, temperature=0.7, seed=1)
    expected = LLM("builtin://quire-tiny", **options).generate("Hello", how, use_tqdm=False)

    llm = LLM("builtin://quire-tiny", tensor_parallel_size=2, **options)
    seen = llm.generate("Hello", how, use_tqdm=False)
    ranks = ranks_of(os.getpid())
    del llm

    assert seen[0].outputs[0].token_ids == expected[0].outputs[0].token_ids
    assert len(ranks) == 1
    assert gone(ranks[0], 5)


def test_what_is_asked_of_tokens_holds_where_ranks_have_unequal_parts_of_the_vocabulary(tmp_path: Path) -> None:
    """Two rows at least: of one, logits lie side by side in any case."""
    save_llama(tmp_path, vocab_size=1025, tie_word_embeddings=False, eos_token_id=2)
    asked = StructuredOutputs(regex="[ab]{6}")
    how = [
        SamplingParams(max_tokens=8, temperature=0.9, seed=n, structured_outputs=asked if n < 3 else None)
        for n in range(5)
    ]

    def answers(**options: Any) -> list[str]:
        llm = LLM(str(tmp_path), dtype="float32", device="cpu", kv_cache_gib=0.01, max_num_seqs=8, **options)
        return [each.outputs[0].text for each in llm.generate(["ab"] * len(how), how, use_tqdm=False)]

    seen = answers(tensor_parallel_size=2)

    assert seen == answers()
    assert all(re.fullmatch("[ab]{6}", text) for text in seen[:3])


# ---------------------------------------------------------------------- one of them ends


@pytest.mark.parametrize(("busy", "tensor", "stages"), [(False, 2, 1), (True, 2, 2)])
def test_a_killed_rank_is_the_end_of_all_within_seconds(busy: bool, tensor: int, stages: int) -> None:
    heard: list[tuple[float, EngineFailure]] = []
    news = threading.Event()

    def lost(failure: EngineFailure) -> None:
        heard.append((time.monotonic(), failure))
        news.set()

    with built("builtin://quire-tiny", tensor, stages, lost) as several:
        several.warm_up()
        ranks = ranks_of(os.getpid())
        several.engine.add(greedy(0, [5], 500, stop_token_ids=frozenset()))
        several.engine.step()

        killed = time.monotonic()
        os.kill(ranks[-1], signal.SIGKILL)
        if not busy:
            assert news.wait(5)
        with pytest.raises(MemoryFailure, match=f"rank {len(ranks)} was ended by SIGKILL"):
            run(several.engine, [greedy(1, [6], 500)])

        assert news.wait(5)
        assert heard[0][0] - killed < 5
        assert [rank for rank in ranks if not gone(rank, 5)] == []


def test_a_rank_that_cannot_load_says_why(tmp_path: Path) -> None:
    save_llama(tmp_path, num_hidden_layers=2)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]  # which only the second stage reads
    save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(EngineFailure, match=r"rank 1: .* has no tensor model\.layers\.1\.mlp\.up_proj") as failure:
        built(tmp_path, 1, 2).__enter__()

    assert failure.value.exit_code == 10


def test_a_rank_that_cannot_be_started_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    with pytest.raises(EngineFailure, match=r"cannot be started: .*/nowhere/python"):
        built("builtin://quire-tiny", 2).__enter__()


def gone(pid: int, seconds: float) -> bool:
    """Or a zombie, which only waits to be collected."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


HELLO: dict[str, Any] = {"prompt": "Hello", "max_tokens": 8, "temperature": 0}


def ranks_of(pid: int) -> list[int]:
    """The processes of other ranks that it started; it may have one for grammars, too."""
    return [child for child in children(pid) if b"process.rank" in Path(f"/proc/{child}/cmdline").read_bytes()]


def processes_of(server: Running) -> tuple[int, list[int]]:
    (engine,) = children(server.process.pid)
    return engine, ranks_of(engine)


def test_a_server_of_two_ranks_answers_idles_and_ends_with_its_rank(tmp_path: Path) -> None:
    options = ["--kv-cache-gib=0.05", "--device=cpu", "--dtype=float32"]
    alone = LLM("builtin://quire-tiny", dtype="float32", device="cpu", kv_cache_gib=0.05)
    expected = alone.generate(HELLO["prompt"], SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)
    with serving(tmp_path, "serve", "builtin://quire-tiny", *options, "--tensor-parallel-size=2") as server:
        engine, (rank,) = processes_of(server)

        answered = server.post("/v1/completions", **HELLO)[1]["choices"][0]["text"]
        time.sleep(0.5)
        before = sum(ticks(pid) for pid in (engine, rank))
        time.sleep(2)
        used = sum(ticks(pid) for pid in (engine, rank)) - before
        os.kill(rank, signal.SIGKILL)
        code = server.process.wait(10)

        assert answered == expected[0].outputs[0].text
        assert used <= 4, f"{used} ticks of 10 ms in 2 s"
        assert code == 11
        assert "rank 1 was ended by SIGKILL, perhaps for want of memory" in server.log.read_text()
        assert gone(engine, 1)


def test_a_stopped_rank_is_a_hang_even_when_idle_and_nobody_survives(tmp_path: Path) -> None:
    options = ["--kv-cache-gib=0.05", "--device=cpu", "--pipeline-parallel-size=2"]
    with serving(tmp_path, "serve", "builtin://quire-tiny", *options) as server:
        engine, (rank,) = processes_of(server)

        os.kill(rank, signal.SIGSTOP)

        assert server.process.wait(12) == EXIT_HUNG
        assert "has not answered for" in server.log.read_text()
        assert gone(engine, 1)
        assert gone(rank, 1)


def test_a_killed_engine_process_leaves_no_rank_not_even_a_stopped_one(tmp_path: Path) -> None:
    options = ["--kv-cache-gib=0.05", "--device=cpu", "--tensor-parallel-size=2"]
    with serving(tmp_path, "serve", "builtin://quire-tiny", *options) as server:
        engine, ranks = processes_of(server)
        os.kill(ranks[0], signal.SIGSTOP)

        os.kill(engine, signal.SIGKILL)

        assert [rank for rank in ranks if not gone(rank, 5)] == []
        assert server.process.wait(10) == 11
