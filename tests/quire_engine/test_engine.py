"""The whole engine in this process: the same tokens and probabilities, however they are computed."""

import random
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import tiny_folder
from fakes.running import Outcome, greedy, run
from transformers import LlamaForCausalLM

from quire_api import EngineConfig
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.step import FinishReason
from quire_engine.errors import ConfigFailure, MemoryFailure, RequestRejected
from quire_engine.ops import Ops
from quire_engine.ops.cpu import native_ops
from quire_engine.ops.reference import reference_ops
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import read_spec

BLOCK = 16
BLOCK_GIB = BLOCK * 6 * 2 * 2 * 32 * 4 / 2**30  # of quire-tiny in float32
SHARED = tuple((13 * i) % 900 + 3 for i in range(40))  # what half of the prompts begin with


def ops_of(kernels: str, dtype: str) -> Ops:
    return reference_ops() if kernels == "reference" else native_ops(getattr(torch, dtype))


def build(kernels: str = "native", dtype: str = "float32", depth: int | None = None, **options: object) -> BuiltEngine:
    config = EngineConfig(**{"model": "builtin://quire-tiny", "dtype": dtype, "kv_cache_gib": 0.05, **options})  # type: ignore[arg-type]
    return build_engine(config, ops=ops_of(kernels, dtype), depth=depth)


def requests(count: int = 32) -> list[Request]:
    """Prompts of many lengths, half of which begin alike; half greedy, half sampled by seed."""
    made = []
    for n in range(count):
        tail = tuple((11 * i + 3 * n) % 900 + 3 for i in range(2 + 5 * n % 61))
        params = TokenParams(
            max_tokens=44,
            temperature=0.0 if n % 4 < 2 else 0.8,
            top_k=0 if n % 3 else 50,
            top_p=0.95,
            seed=n,
            logprobs=2,
        )
        made.append(Request(id=RequestId(n), prompt=SHARED + tail if n % 2 else tail, params=params))
    return made


def test_a_cache_of_eight_bits_holds_as_much_again_and_gives_nearly_the_same() -> None:
    """What it keeps of a prefix is what is computed anew, to the bit, for both are read from it."""
    plain, small = (build("reference", kv_cache_gib=BLOCK_GIB * 60, kv_cache_dtype=kind) for kind in ("auto", "fp8"))
    expected = run(plain.engine, [greedy(1, SHARED, 12, logprobs=1)])[1]

    first, again = (run(small.engine, [greedy(number, SHARED, 12, logprobs=1)])[number] for number in (1, 2))

    assert small.sizes.num_blocks == 4 * plain.sizes.num_blocks
    assert again.cached
    assert (first.tokens, first.logprobs) == (again.tokens, again.logprobs)
    differences = [abs(a.logprob - b.logprob) for a, b in zip(first.logprobs, expected.logprobs, strict=True)]
    assert 0 < differences[0] < 0.3


def test_who_wants_the_same_bits_shares_prefixes_with_its_like_alone() -> None:
    built = build()
    cached = [
        run(built.engine, [greedy(number, SHARED, 2, batch_invariant=asks)])[number].cached
        for number, asks in enumerate((False, True, True, False))
    ]

    assert [bool(count) for count in cached] == [False, False, True, True]


def test_plain_torch_cannot_give_the_same_bits_in_any_batch() -> None:
    with pytest.raises(RequestRejected, match="batch_invariant cannot be had of plain torch"):
        build("reference").engine.add(greedy(0, SHARED, 2, batch_invariant=True))


def test_a_cache_of_eight_bits_is_copied_and_swapped() -> None:
    shape = read_spec(tiny_folder()).shape
    cache = KVCache(shape, 4, 2, BLOCK, torch.float8_e4m3fn, torch.device("cpu"))
    keys, values = (part.view(torch.uint8) for part in cache.layer(1))
    keys[0], values[0] = 7, 9

    cache.copy([(0, 2)])
    cache.swap_out([(2, 1)])
    keys.zero_()
    cache.swap_in([(1, 3)])

    assert (keys[3] == 7).all()
    assert (values[2] == 9).all()
    assert keys.nbytes == 5 * BLOCK * shape.kv_bytes_per_token("fp8") // (2 * shape.layers)


def test_kernels_for_cpus_have_no_cache_of_eight_bits() -> None:
    with pytest.raises(ConfigFailure, match="--kv-cache-dtype fp8 needs Triton's kernels"):
        build(kv_cache_dtype="fp8")


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[int, Outcome]]:
    """What each request gets when it has the engine to itself, and nothing is remembered."""
    found = {}
    for kernels in ("reference", "native"):
        built = build(kernels, enable_prefix_caching=False)
        found[kernels] = run(built.engine, requests(), together=False)
    return found


def assert_same(seen: dict[int, Outcome], expected: dict[int, Outcome], tolerance: float) -> None:
    for number, outcome in expected.items():
        assert seen[number].tokens == outcome.tokens, f"request {number}"
        for ours, theirs in zip(seen[number].logprobs, outcome.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=tolerance)
            assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]


TOLERANCE = {
    "reference": 2e-4,
    "native": 0.0,
}  # 1e-5 of the largest logit, which is about 20; the native kernels owe none


WAYS = [
    (kernels, chunk, caching, preempted)
    for kernels, chunks in (("native", (1, 7, 16, 4096)), ("reference", (7,)))
    for chunk in chunks
    for caching in (True, False)
    for preempted in ("", "recompute", "swap")
]


@pytest.mark.parametrize(("kernels", "chunk", "caching", "preempted"), WAYS)
def test_tokens_and_logprobs_do_not_depend_on_how_they_are_computed(
    kernels: str, chunk: int, caching: bool, preempted: str, alone: dict[str, dict[int, Outcome]]
) -> None:
    """Chunks of prompts, 32 requests together, prefixes found or not, preempted or not, one step ahead or not."""
    built = build(
        kernels,
        depth=1 if chunk in (1, 16) else 2,
        max_num_seqs=32,
        max_num_batched_tokens=32 + chunk,
        kv_cache_gib=BLOCK_GIB * (30.5 if preempted else 400),
        long_prefill_token_threshold=4096 if preempted else None,  # long ones come one by one, and do not crowd
        swap_space_gib=BLOCK_GIB * 100.5 if preempted == "swap" else 0.0,
        enable_prefix_caching=caching,
        max_model_len=256,
    )

    together = run(built.engine, requests())
    again = run(built.engine, requests()) if caching and not preempted else together

    assert_same(together, alone[kernels], TOLERANCE[kernels])
    assert_same(again, alone[kernels], TOLERANCE[kernels])
    assert bool(built.engine.load.preemptions) == bool(preempted)
    if again is not together:
        assert any(outcome.cached for outcome in again.values())
    assert built.engine.load.kv_usage == 0


@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_alone_a_prompt_in_chunks_gives_the_same(chunk: int, alone: dict[str, dict[int, Outcome]]) -> None:
    built = build(max_num_seqs=1, max_num_batched_tokens=chunk, enable_prefix_caching=False)

    seen = run(built.engine, requests(9), together=False)

    assert_same(seen, {n: alone["native"][n] for n in range(9)}, 0.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_native_kernels_give_the_same_bits_in_any_batch_in_half_precision_too(dtype: str) -> None:
    expected = run(build(dtype=dtype, enable_prefix_caching=False).engine, requests(), together=False)

    seen = run(build(dtype=dtype, max_num_seqs=32, max_num_batched_tokens=39).engine, requests())

    assert_same(seen, expected, 0.0)


def test_greedy_tokens_are_those_of_transformers() -> None:
    oracle = LlamaForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32).eval()
    prompts = [tuple((5 * i + n) % 900 + 3 for i in range(length)) for n, length in enumerate((1, 15, 16, 17, 50))]

    seen = run(build().engine, [greedy(n, prompt, 32, stop_token_ids=frozenset()) for n, prompt in enumerate(prompts)])

    for n, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        theirs = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert seen[n].tokens == theirs[0, len(prompt) :].tolist()


def test_logprobs_of_a_prompt_are_those_of_transformers() -> None:
    oracle = LlamaForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32).eval()
    prompt = tuple((5 * i) % 900 + 3 for i in range(50))
    built = build(max_num_seqs=4, max_num_batched_tokens=12)
    run(built.engine, [greedy(0, prompt, 1)])  # known by now; it is scored nevertheless

    seen = run(built.engine, [greedy(1, prompt, 2, prompt_logprobs=3, logprobs=3), greedy(2, SHARED, 5)])[1]

    with torch.inference_mode():
        logits = oracle(torch.tensor([[*prompt, *seen.tokens]])).logits[0].log_softmax(dim=-1)
    scores = [*seen.prompt_logprobs, *seen.logprobs]
    assert [score.token for score in scores] == [*prompt[1:], *seen.tokens]
    for row, score in enumerate(scores):
        assert score.logprob == pytest.approx(float(logits[row, score.token]), abs=1e-4)
        assert score.rank == int((logits[row] > logits[row, score.token]).sum()) + 1
        values, ids = logits[row].topk(3)
        assert [i for i, _ in score.top] == ids.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_known_prompt_is_not_computed_again() -> None:
    prompt = [(7 * i) % 900 + 3 for i in range(1000)]
    built = build()

    cold, warm = (run(built.engine, [greedy(n, prompt, 4)])[n] for n in (0, 1))

    assert (cold.cached, warm.cached) == (0, 992)
    assert warm.tokens == cold.tokens


def test_several_answers_share_their_prompt() -> None:
    params = [TokenParams(max_tokens=12, temperature=1.0, seed=seed) for seed in range(4)]
    prompt = tuple((7 * i) % 900 + 3 for i in range(100))
    alone = build(enable_prefix_caching=False)
    expected = run(
        alone.engine, [Request(id=RequestId(n), prompt=prompt, params=p) for n, p in enumerate(params)], together=False
    )
    built = build(enable_prefix_caching=False)

    seen = run(
        built.engine,
        [
            Request(id=RequestId(n), prompt=prompt, params=p, leader=RequestId(0) if n else None)
            for n, p in enumerate(params)
        ],
    )

    assert [seen[n].tokens for n in range(4)] == [expected[n].tokens for n in range(4)]
    assert [seen[n].cached for n in range(4)] == [0, 99, 99, 99]
    assert len({tuple(seen[n].tokens) for n in range(4)}) > 1


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_any_block_size_gives_the_same(size: int, kernels: str, alone: dict[str, dict[int, Outcome]]) -> None:
    seen = run(build(kernels, block_size=size).engine, requests(12))

    for number, outcome in seen.items():
        assert outcome.tokens == alone[kernels][number].tokens


def test_a_request_that_is_refused_leaves_the_others_alone() -> None:
    built = build(max_model_len=64)
    expected = run(built.engine, [greedy(0, SHARED, 10)])[0]
    built.engine.add(greedy(1, SHARED, 10))
    built.engine.step()

    for prompt in ((), tuple(range(64)), (1, 1024), (-1,)):
        with pytest.raises(RequestRejected):
            built.engine.add(greedy(2, prompt, 4))

    outcome = run(built.engine, [greedy(3, SHARED, 10)])
    assert outcome[3].tokens == expected.tokens


def test_logits_that_are_no_numbers_end_that_request_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny_folder().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")  # whoever says token 7 is lost
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    built = build(model=str(tmp_path), enable_prefix_caching=False)

    seen = run(built.engine, [greedy(0, (5, 7), 4, logit_bias=((7, -100.0),))])

    assert seen[0].finish is FinishReason.ERROR


def test_dummy_weights_need_no_file_of_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder() / "config.json").read_bytes())
    config = EngineConfig(model=str(tmp_path), load_format="dummy", kv_cache_gib=0.01)

    built = build_engine(config, with_tokenizer=False)

    assert len(run(built.engine, [greedy(0, (1, 2, 3), 8)])[0].tokens) == 8


def test_made_up_weights_are_of_no_method_that_the_checkpoint_does_not_name() -> None:
    with pytest.raises(ConfigFailure, match="--quantization awq, but the checkpoint is not quantized"):
        build(load_format="dummy", quantization="awq")


@pytest.mark.parametrize(
    ("changes", "failure", "says"),
    [
        ({"kv_cache_gib": 0.001}, MemoryFailure, "one request may have"),
        ({"swap_space_gib": 4000.0}, MemoryFailure, "--swap-space-gib"),
        ({"max_model_len": 4096, "kv_cache_gib": None}, ConfigFailure, "2048 tokens the model was trained for"),
    ],
)
def test_what_does_not_fit_is_said_with_the_option_to_change(
    changes: dict[str, object], failure: type[Exception], says: str
) -> None:
    with pytest.raises(failure, match=says):
        build(**{"max_model_len": 2048, **changes})


def test_traffic_of_many_kinds_gives_each_its_own_tokens() -> None:
    """A thousand steps of arrivals and departures; whoever stays gets what it gets alone."""
    rng = random.Random(0)
    pool = [
        greedy(n, [rng.randrange(3, 900) for _ in range(rng.randrange(1, 60))], rng.randrange(1, 25)) for n in range(40)
    ]
    expected = run(build(enable_prefix_caching=False).engine, pool, together=False)
    built = build(kv_cache_gib=BLOCK_GIB * 24.5, max_model_len=128, max_num_seqs=8, max_num_batched_tokens=40)
    open_: dict[int, tuple[int, list[int]]] = {}
    for number in range(1000):
        if rng.random() < 0.25:
            request = rng.choice(pool)
            built.engine.add(Request(id=RequestId(number), prompt=request.prompt, params=request.params))
            open_[number] = request.id, []
        if open_ and rng.random() < 0.03:
            gone = rng.choice(sorted(open_))
            assert built.engine.abort(RequestId(gone)).finished[0].reason is FinishReason.ABORT
            del open_[gone]
        events = built.engine.step()
        for i, (request_id, token) in enumerate(zip(events.ids, events.tokens, strict=True)):
            kind, tokens = open_[request_id]
            tokens.append(token)
            if i in events.finished:
                assert tokens == expected[kind].tokens
                del open_[request_id]
    assert built.engine.load.prefix_hits > 0
