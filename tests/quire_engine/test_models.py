"""Our models against transformers: logits, the very tokens, embeddings, and numbers of parameters."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoints import (
    BLOCK,
    CASES,
    LENGTHS,
    PAGE,
    WINDOW,
    models_page,
    rename_tensors,
    save_case,
    tiny_folder,
)
from transformers import LlamaForCausalLM

from quire_api.footprint import ModelShape
from quire_engine.core.request import TokenParams
from quire_engine.core.step import Placement, StepPlan
from quire_engine.errors import RequestRejected
from quire_engine.models import ARCHITECTURES, CausalLM, Encoder
from quire_engine.models.weights import DummyWeights, Weights
from quire_engine.ops.reference import reference_ops
from quire_engine.runtime.batch import BatchBuilder
from quire_engine.runtime.embedder import Embedder
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import ModelSpec, read_spec

CPU = torch.device("cpu")
GENERATORS = [name for name, case in CASES.items() if case.generates]
ENCODERS = [name for name, case in CASES.items() if not case.generates]
Tensors = dict[str, torch.Tensor]


@functools.cache
def load(folder: Path) -> tuple[ModelSpec, Encoder]:
    spec = read_spec(folder)
    with Weights(folder, torch.float32, CPU) as weights:
        return spec, ARCHITECTURES[spec.architecture](spec, weights, reference_ops(), CPU)


@functools.cache
def oracle_of(name: str, folder: Path) -> Any:
    return save_case(name, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, Any]]]:
    """Name of a case -> its folder, and the oracle; written once."""
    base = tmp_path_factory.mktemp("checkpoints")
    yield lambda name: (base / name, oracle_of(name, base / name))
    load.cache_clear()
    oracle_of.cache_clear()


class Driver:
    """A model, its cache and its batches: the engine's part, written out."""

    def __init__(self, spec: ModelSpec, model: CausalLM, seqs: int = 1, max_len: int = 128) -> None:
        self._model = model
        self._per_seq = max_len // BLOCK
        num_blocks = seqs * self._per_seq
        self._cache = KVCache(spec.shape, num_blocks, 0, BLOCK, torch.float32, CPU)
        self._builder = BatchBuilder(seqs, max_len, BLOCK, CPU)
        self._order = [(5 * i + 3) % num_blocks for i in range(num_blocks)]  # blocks of a sequence lie anywhere
        self._last = torch.zeros(seqs, dtype=torch.int64)

    def place(self, slot: int, prompt: list[int]) -> Placement:
        blocks = self._order[slot * self._per_seq : (slot + 1) * self._per_seq]
        params = TokenParams(max_tokens=1)
        return Placement(slot=slot, tokens=prompt, num_prompt=len(prompt), blocks=blocks, params=params)

    def step(self, plan: StepPlan) -> torch.Tensor:
        """Logits [T, vocabulary]; the likeliest after each chunk is the token that follows it."""
        with torch.inference_mode():
            self._builder.take_in(plan)
            batch = self._builder.build(plan)
            batch.tokens[batch.follow_rows] = self._last[batch.follow_slots]
            logits = self._model.logits(self._model.forward(batch, self._cache))
        self._last[plan.slots] = logits[batch.query_start[1:].long() - 1].argmax(dim=-1)
        return logits

    def prefill(self, prompt: list[int]) -> torch.Tensor:
        plan = StepPlan(placements=[self.place(0, prompt)], slots=[0], starts=[0], lengths=[len(prompt)])
        return self.step(plan)

    def generate(self, prompts: list[list[int]], count: int, chunk: int) -> list[list[int]]:
        """Greedy tokens of all prompts together, each prompt computed in chunks."""
        slots = list(range(len(prompts)))
        placements = [self.place(slot, prompts[slot]) for slot in slots]
        for start in range(0, max(map(len, prompts)), chunk):
            late = [slot for slot in slots if len(prompts[slot]) > start]
            lengths = [min(chunk, len(prompts[slot]) - start) for slot in late]
            new, placements = placements, []
            self.step(StepPlan(placements=new, slots=late, starts=[start] * len(late), lengths=lengths))
        out = [self._last.tolist()]
        for i in range(count - 1):
            ends = [len(prompt) + i for prompt in prompts]
            self.step(StepPlan(slots=slots, starts=ends, lengths=[1] * len(slots)))
            out.append(self._last.tolist())
        return [list(column) for column in zip(*out, strict=True)]


def our_logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    """[T, vocabulary]"""
    spec, model = load(folder)
    return Driver(spec, model).prefill(tokens)  # type: ignore[arg-type]


def their_logits(oracle: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return oracle(torch.tensor([tokens])).logits[0]


def prompt_of(length: int, seed: int = 3) -> list[int]:
    return [(7 * i + seed) % 128 for i in range(length)]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-4, f"relative to the largest one, the error is {error:.2e}"


@pytest.mark.parametrize("case", GENERATORS)
def test_logits_equal_transformers(case: str, saved: Any) -> None:
    folder, oracle = saved(case)
    for length in LENGTHS:
        tokens = prompt_of(length)

        ours = our_logits(folder, tokens)

        assert_close(ours, their_logits(oracle, tokens))


@pytest.mark.parametrize("case", GENERATORS)
def test_32_greedy_tokens_equal_transformers(case: str, saved: Any) -> None:
    folder, oracle = saved(case)
    spec, model = load(folder)
    prompts = [prompt_of(length, seed) for seed, length in enumerate((1, BLOCK, WINDOW - 1, 50))]

    ours = Driver(spec, model, seqs=4).generate(prompts, 32, chunk=13)

    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, pad_token_id=0
        )
        assert tokens == theirs[0, len(prompt) :].tolist()


def embedder_of(folder: Path, **changes: int) -> Embedder:
    spec, model = load(folder)
    options = {"block_size": BLOCK, "max_tokens": 64, **changes}
    return Embedder(model, spec, dtype=torch.float32, device=CPU, **options)


def test_a_text_to_be_embedded_is_as_long_as_was_asked_for(saved: Any) -> None:
    """However many tokens go through the model at once."""
    folder, _ = saved("qwen3")

    assert embedder_of(folder, longest=20).longest == 20
    assert embedder_of(folder).longest == 64


def their_hidden(oracle: Any, tokens: list[int]) -> torch.Tensor:
    """[T, hidden] before any head"""
    with torch.inference_mode():
        return oracle.base_model(torch.tensor([tokens])).last_hidden_state[0]


POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda hidden: hidden[0],
    "mean": lambda hidden: hidden.mean(dim=0),
    "lasttoken": lambda hidden: hidden[-1],
}


@pytest.mark.parametrize("case", [*ENCODERS, "qwen3", "llama"])
def test_embeddings_equal_transformers(case: str, saved: Any) -> None:
    """By default BERT's are means, those of others the last token's; of length 1. In batches of some prompts each."""
    folder, oracle = saved(case)
    prompts = [prompt_of(length, seed) for seed, length in enumerate(LENGTHS)]
    pool = POOLS["mean" if case.startswith("bert") else "lasttoken"]

    ours = embedder_of(folder).embed(prompts)

    theirs = torch.stack([pool(their_hidden(oracle, prompt)) for prompt in prompts])
    assert_close(ours, torch.nn.functional.normalize(theirs, dim=-1))


@pytest.mark.parametrize("mode", POOLS)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("said", ["pooling_mode_{}_tokens", "pooling_mode"])
def test_embeddings_are_pooled_as_sentence_transformers_wrote(
    mode: str, normalise: bool, said: str, tmp_path: Path
) -> None:
    oracle = save_case("bert", tmp_path)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    old = {f"pooling_mode_{name}": name.startswith(mode) for name in ("cls_token", "mean_tokens", "lasttoken")}
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(
        json.dumps({"pooling_mode": mode} if said == "pooling_mode" else old)
    )

    ours = embedder_of(tmp_path).embed([prompt_of(17)])

    theirs = POOLS[mode](their_hidden(oracle, prompt_of(17)))
    assert_close(ours[0], torch.nn.functional.normalize(theirs, dim=-1) if normalise else theirs)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "input 1 is empty"),
        ([1] * 65, "input 1 has 65 tokens, and at most 64 fit"),
        ([5, 128], "input 1 has the token id 128, and ids go from 0 to 127"),
        ([-1, 5], "input 1 has the token id -1"),
    ],
)
def test_what_cannot_be_embedded_is_rejected_in_a_sentence(prompt: list[int], says: str, saved: Any) -> None:
    embedder = embedder_of(saved("bert")[0])

    with pytest.raises(RequestRejected, match=says):
        embedder.embed([[1, 2], prompt])


def test_nothing_to_embed_is_nothing(saved: Any) -> None:
    assert embedder_of(saved("bert")[0]).embed([]).shape == (0, 64)


@pytest.mark.parametrize("case", CASES)
def test_footprint_counts_every_parameter(case: str, saved: Any) -> None:
    folder, oracle = saved(case)
    unused = ("pooler.", "cls.")  # of BERT, which the engine leaves in the file
    theirs = [p.numel() for name, p in oracle.named_parameters() if not name.startswith(unused)]

    counted = ModelShape.from_config(json.loads((folder / "config.json").read_text()))

    assert counted.parameters == sum(theirs)


def test_footprint_is_the_size_of_the_shipped_file() -> None:
    shape = read_spec(tiny_folder()).shape
    header = 8 + int.from_bytes((tiny_folder() / "model.safetensors").read_bytes()[:8], "little")

    assert (tiny_folder() / "model.safetensors").stat().st_size - header == shape.weight_bytes("bfloat16")
    cache = KVCache(shape, 3, 0, BLOCK, torch.bfloat16, CPU)
    allocated = sum(part.nbytes for index in range(shape.layers) for part in cache.layer(index))
    assert allocated == (3 + 1) * BLOCK * shape.kv_bytes_per_token("bfloat16")


def test_logits_of_quire_tiny_equal_transformers() -> None:
    oracle = LlamaForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32).eval()
    tokens = [1, 300, 17, 900, 2, 511, 64, 32, 700, 3] * 6

    ours = our_logits(tiny_folder(), tokens)

    assert float((ours - their_logits(oracle, tokens)).abs().max()) < 1e-4


@pytest.mark.parametrize("case", ["llama-untied", "mixtral", "gpt2"])
def test_sharded_weights_are_the_same_model(case: str, tmp_path: Path) -> None:
    oracle = save_case(case, tmp_path, shards="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2

    ours = our_logits(tmp_path, [1, 2, 3])

    assert_close(ours, their_logits(oracle, [1, 2, 3]))


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer.").removeprefix("model."): tensor for name, tensor in tensors.items()}


def as_first_gpt2(tensors: Tensors) -> Tensors:
    """With the causal mask in it, as on the hub."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 256, 256) for i in range(3)}
    return without_prefix(tensors) | masks


def with_copied_head(tensors: Tensors) -> Tensors:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def with_derived_angles(tensors: Tensors) -> Tensors:
    return tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}


def with_fused_experts(tensors: Tensors) -> Tensors:
    """As transformers 5 holds them in memory."""
    out = {k.replace("block_sparse_moe", "mlp"): v for k, v in tensors.items() if ".experts." not in k}
    for layer in range(3):
        old, new = f"model.layers.{layer}.block_sparse_moe.experts", f"model.layers.{layer}.mlp.experts"
        w1, w2, w3 = ([tensors[f"{old}.{e}.w{i}.weight"] for e in range(5)] for i in (1, 2, 3))
        out[f"{new}.gate_up_proj"] = torch.cat((torch.stack(w1), torch.stack(w3)), dim=1)
        out[f"{new}.down_proj"] = torch.stack(w2)
    return out


def with_named_experts(tensors: Tensors) -> Tensors:
    names = {".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj.", "block_sparse_moe": "mlp"}
    return {functools.reduce(lambda n, pair: n.replace(*pair), names.items(), k): v for k, v in tensors.items()}


def with_split_matrices(tensors: Tensors) -> Tensors:
    """A Phi-3 that somebody took apart."""
    out = dict(tensors)
    for layer in (f"model.layers.{i}" for i in range(3)):
        parts = out.pop(f"{layer}.self_attn.qkv_proj.weight").split([64, 32, 32])
        out |= {f"{layer}.self_attn.{p}_proj.weight": part for p, part in zip("qkv", parts, strict=True)}
    return out


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("gpt2", as_first_gpt2), ("qwen3", without_prefix), ("llama", with_copied_head), ("llama", with_derived_angles),
        ("mixtral", with_fused_experts), ("mixtral", with_named_experts), ("phi3", with_split_matrices),
    ],
)  # fmt: skip
def test_other_names_are_the_same_model(case: str, change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    oracle = save_case(case, tmp_path)
    rename_tensors(tmp_path, change)

    ours = our_logits(tmp_path, prompt_of(17))

    assert_close(ours, their_logits(oracle, prompt_of(17)))


def as_first_bert(tensors: Tensors) -> Tensors:
    new = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in tensors.items()}  # fmt: skip
    return {f"bert.{k}": v for k, v in new.items()} | {"cls.seq_relationship.bias": torch.zeros(2)}


def test_bert_of_the_first_day_is_read(tmp_path: Path) -> None:
    oracle = save_case("bert", tmp_path)
    rename_tensors(tmp_path, as_first_bert)

    ours = embedder_of(tmp_path).embed([prompt_of(17)])

    assert_close(ours[0], torch.nn.functional.normalize(their_hidden(oracle, prompt_of(17)).mean(dim=0), dim=-1))


@pytest.mark.parametrize("case", CASES)
def test_the_older_dialect_of_a_config_says_the_same(case: str, saved: Any, tmp_path: Path) -> None:
    folder, _ = saved(case)
    config = json.loads((folder / "config.json").read_text())
    ropes = config.pop("rope_parameters", None) or {}
    ropes = ropes.get("full_attention", ropes) | {"local": ropes.get("sliding_attention", {}).get("rope_theta")}
    config |= {"rope_theta": ropes.pop("rope_theta", None), "rope_local_base_freq": ropes.pop("local")}
    config["partial_rotary_factor"] = ropes.pop("partial_rotary_factor", None)
    kind = ropes.pop("rope_type", "default")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **ropes}
    config["torch_dtype"] = config.pop("dtype")
    if "_sliding_window_pattern" in config:
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    config.pop("layer_types", None)
    if "num_local_experts" in config and "moe_intermediate_size" in config:
        config["num_experts"] = config.pop("num_local_experts")
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert read_spec(tmp_path) == read_spec(folder)


def test_yarn_reaches_as_far_as_it_stretches_and_dynamic_as_far_as_it_was_trained(saved: Any, tmp_path: Path) -> None:
    config = json.loads((saved("llama-rope-yarn")[0] / "config.json").read_text()) | {"max_position_embeddings": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert read_spec(tmp_path).trained_len == 4 * 24
    assert read_spec(saved("llama-rope-dynamic")[0]).trained_len == 256


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_random_numbers_needs_no_weights(case: str, saved: Any) -> None:
    spec = read_spec(saved(case)[0])
    hidden = []
    for _ in range(2):
        with DummyWeights(torch.bfloat16, CPU) as weights:
            model = ARCHITECTURES[spec.architecture](spec, weights, reference_ops(), CPU)
        embedder = Embedder(model, spec, dtype=torch.bfloat16, block_size=BLOCK, max_tokens=64, device=CPU)
        hidden.append(embedder.embed([prompt_of(20)]))

    assert bool(hidden[0].isfinite().all())
    assert torch.equal(*hidden)


def test_every_architecture_is_compared_with_transformers() -> None:
    """Add a case when you add a family."""
    assert set(ARCHITECTURES) == {case.architecture for case in CASES.values()}


def test_the_page_of_models_is_fresh() -> None:
    assert PAGE.read_text() == models_page(), "run `PYTHONPATH=tests .venv/bin/python -m fakes.checkpoints`"
