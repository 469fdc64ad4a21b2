"""A checkpoint that is not whole is never loaded, one that we would run differently neither; the message says why."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoints import rename_tensors, save_case, save_llama
from safetensors.torch import load_file, save_file

from quire_engine.errors import ConfigFailure, EngineFailure, WeightsFailure
from quire_engine.locate import locate_model
from quire_engine.models import ARCHITECTURES
from quire_engine.models.weights import DummyWeights, Weights
from quire_engine.ops.reference import reference_ops
from quire_engine.spec import Routing, read_spec

CPU = torch.device("cpu")


def load(folder: Path) -> None:
    spec = read_spec(folder)
    with Weights(folder, torch.float32, CPU) as weights:
        ARCHITECTURES[spec.architecture](spec, weights, reference_ops(), CPU)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def quantise(folder: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    rename_tensors(folder, lambda tensors: tensors | {name: tensors[name].to(torch.int8)})


def lose_a_shard(folder: Path) -> None:
    save_case("llama-untied", folder, shards="100KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def spoil_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")


def add_modules(folder: Path, *kinds: str, **pooling: object) -> None:
    """What sentence-transformers writes."""
    modules = [{"path": "1_Pooling", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def rope(**settings: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, rope_parameters={"rope_theta": 1e4, **settings})


def config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changes)


SPOILED: dict[str, tuple[Callable[[Path], object], type[EngineFailure], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), WeightsFailure, "config.json is missing"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), WeightsFailure, "config.json cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), WeightsFailure, "is not a JSON object"),
    "size missing": (config(hidden_size=None), WeightsFailure, "has no hidden_size"),
    "size wrong": (
        config(intermediate_size=95),
        WeightsFailure,
        r"gate_proj.weight is \[96, 64\] .* makes it \[95, 64\]",
    ),
    "heads that cannot share": (config(num_key_value_heads=3), WeightsFailure, "4 attention heads cannot share 3"),
    "a layer too few": (config(num_hidden_layers=2), WeightsFailure, "has 9 tensors the model does not know"),
    "a layer too many": (config(num_hidden_layers=4), WeightsFailure, "has no tensor model.layers.3"),
    "size as text": (config(hidden_size="64"), WeightsFailure, "hidden_size is '64', and should be a number"),
    "no family": (config(architectures=[]), WeightsFailure, "value of the wrong kind"),
    "unknown family": (
        config(architectures=["MambaForCausalLM"], model_type="mamba"),
        ConfigFailure,
        "MambaForCausalLM is not supported yet: its model_type is 'mamba'",
    ),
    "unknown activation": (
        config(hidden_act="relu"),
        ConfigFailure,
        "activation 'relu' is not supported yet, only silu",
    ),
    "unknown format": (config(dtype="float64"), ConfigFailure, "type 'float64' are not supported yet"),
    "quantised in no known way": (
        config(quantization_config={"bits": 4}),
        ConfigFailure,
        "quantization_config names no quant_method that it could be read by: {'bits': 4}",
    ),
    "quantised without a word": (quantise, WeightsFailure, "down_proj.weight is I8 in .* only BF16, F16, F32"),
    "no causal mask": (config(use_bidirectional_attention=True), ConfigFailure, "use_bidirectional_attention is True"),
    "unknown rope": (
        rope(rope_type="longrope"),
        ConfigFailure,
        "'longrope' of a llama is not supported yet, only default",
    ),
    "rope without its factor": (rope(rope_type="linear"), WeightsFailure, "has no factor"),
    "rope with more than we know": (
        rope(rope_type="default", mrope_section=[1, 2]),
        ConfigFailure,
        "rotary embedding 'default' with mrope_section is not supported yet",
    ),
    "rope of half a head": (rope(partial_rotary_factor=0.5), ConfigFailure, "partial_rotary_factor 0.5 of a llama"),
    "unknown layer": (
        config(model_type="qwen3", layer_types=["full_attention"] * 2 + ["chunked_attention"]),
        ConfigFailure,
        "a layer of type 'chunked_attention' is not supported yet",
    ),
    "layers not all named": (
        config(model_type="qwen3", layer_types=["full_attention"]),
        WeightsFailure,
        "layer_types names 1 layers, and num_hidden_layers is 3",
    ),
    "unknown module": (lambda f: add_modules(f, "Dense"), ConfigFailure, "sentence_transformers.models.Dense is not"),
    "unknown pooling": (
        lambda f: add_modules(f, "Transformer", "Pooling", pooling_mode_max_tokens=True, pooling_mode_mean_tokens=True),
        ConfigFailure,
        "pooling by max_tokens and mean_tokens is not supported yet",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), WeightsFailure, "model.safetensors is missing"),
    "weights cut short": (cut_short, WeightsFailure, "damaged or cut short"),
    "a shard missing": (lose_a_shard, WeightsFailure, "model-00002-of-.*.safetensors is missing"),
    "index of nothing": (spoil_the_index, WeightsFailure, "model.safetensors.index.json cannot be read"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_checkpoint_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    spoil, failure, says = SPOILED[case]
    save_llama(tmp_path)
    spoil(tmp_path)

    with pytest.raises(failure, match=says):
        load(tmp_path)


GPT_OSS: dict[str, Any] = {  # what config.json of the 20 B model says, in its own words; smaller
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 64, "initial_context_length": 4096, "intermediate_size": 96,
    "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 131072, "model_type": "gpt_oss",
    "num_attention_heads": 8, "num_experts_per_tok": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 8,
    "output_router_logits": False, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "rms_norm_eps": 1e-5, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn",
        "truncate": False,
    },
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 512,
}  # fmt: skip
BLOOM: dict[str, Any] = {  # the same of the 560 M one
    "apply_residual_connection_post_layernorm": False, "architectures": ["BloomForCausalLM"], "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 64, "layer_norm_epsilon": 1e-5,
    "masked_softmax_fusion": True, "model_type": "bloom", "n_head": 4, "n_inner": None, "n_layer": 2, "offset_alibi": 100,
    "pad_token_id": 3, "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True, "slow_but_exact": False, "vocab_size": 512,
}  # fmt: skip

DEEPSEEK_V3: dict[str, Any] = {  # at its own size
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "aux_loss_alpha": 0.001, "bos_token_id": 0,
    "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
    "seq_aux": True, "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip


def test_deepseek_v3_is_understood_as_it_was_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))

    spec = read_spec(tmp_path)

    assert spec.shape.parameters == 671_026_404_352
    assert spec.shape.kv_bytes_per_token("bfloat16") == 61 * 576 * 2
    assert spec.routing == Routing(
        chosen=8, renormalised=True, sigmoid=True, groups=8, chosen_groups=4, judged_by=2, scale=2.5
    )
    assert spec.attention_scale == pytest.approx(192**-0.5 * (1 + 0.1 * math.log(40)) ** 2)
    assert spec.ropes[0] is not None
    assert (spec.ropes[0].dim, spec.ropes[0].interleaved, spec.ropes[0].attention_factor) == (64, True, 1.0)
    assert spec.trained_len == 163840


def test_configs_are_understood_as_they_were_published(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT_OSS))

    oss = read_spec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BLOOM))
    save_file({"word_embeddings.weight": torch.zeros(2, 2, dtype=torch.float16)}, tmp_path / "model.safetensors")
    bloom = read_spec(tmp_path)

    assert (oss.dtype, oss.windows, oss.activation) == ("bfloat16", (128, None), "gpt_oss")
    assert (oss.trained_len, oss.shape.kv_heads, oss.shape.experts) == (131072, 2, 8)
    assert oss.ropes[0] is not None
    assert (oss.ropes[0].kind, oss.ropes[0].theta, oss.ropes[0].truncate) == ("yarn", 150000, False)
    assert (bloom.dtype, bloom.trained_len, bloom.shape.heads) == ("float16", 2048, 4)  # no dtype but the tensors' own


@pytest.mark.parametrize(
    ("case", "changes", "says"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False, which is not supported yet, only True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "apply_residual_connection_post_layernorm is True",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "linear"}},
            "'linear' of a phi3 is not supported yet, only default, long",
        ),
        (
            "deepseek-v2",
            {"topk_method": "noaux_tc"},
            "routing of a deepseek_v2 by 'noaux_tc' of 'softmax' is not supported",
        ),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob of a deepseek_v2 is not supported"),
        (
            "deepseek-v3",
            {"scoring_func": "softmax"},
            "by 'noaux_tc' of 'softmax' is not supported yet, only by noaux_tc of sig",
        ),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2, which is not supported yet, only 1"),
    ],
)
def test_what_a_family_may_say_and_we_do_not_compute_is_refused(
    case: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    save_case(case, tmp_path)
    edit_config(tmp_path, **changes)

    with pytest.raises(ConfigFailure, match=says):
        load(tmp_path)


def test_a_router_that_has_lost_its_preference_is_refused(tmp_path: Path) -> None:
    save_case("deepseek-v3", tmp_path)
    rename_tensors(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if not k.endswith("correction_bias")})

    with pytest.raises(WeightsFailure, match=r"has no tensor model.layers.1.mlp.gate.e_score_correction_bias"):
        load(tmp_path)


def test_longrope_is_for_texts_as_long_as_they_may_become(tmp_path: Path) -> None:
    save_case("phi3-longrope", tmp_path)
    edit_config(tmp_path, original_max_position_embeddings=64)

    divisors = [
        rope.divisors[0] for rope in (read_spec(tmp_path, longest).ropes[0] for longest in (64, 65, None)) if rope
    ]

    assert divisors == [1.0, 1.5, 1.5]
    edit_config(tmp_path, original_max_position_embeddings=256, max_position_embeddings=512)
    rope = read_spec(tmp_path, 10).ropes[0]
    assert rope is not None
    assert (rope.divisors[0], rope.attention_factor) == (1.0, 1.2)
    edit_config(tmp_path, rope_parameters={"rope_type": "su", "short_factor": [1.0], "long_factor": [1.0]})
    with pytest.raises(WeightsFailure, match="long_factor has 1 numbers, and should have 8"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/nowhere", "no model at /nowhere: there is no such folder"),
        ("file:///nowhere", "no model at /nowhere"),
        ("builtin://llama-9", "no such model ships with this engine"),
    ],
)
def test_a_missing_model_is_named(model: str, says: str) -> None:
    with pytest.raises(WeightsFailure, match=says):
        locate_model(model)


def test_parts_of_a_tensor_are_read_one_after_the_other(tmp_path: Path) -> None:
    save_file({"all": torch.arange(12.0).view(3, 2, 2)}, tmp_path / "model.safetensors")

    with Weights(tmp_path, torch.float16, CPU) as weights:
        parts = list(weights.parts("all", (3, 2, 2)))

    assert [part.dtype for part in parts] == [torch.float16] * 3
    assert torch.equal(torch.stack(parts), load_file(tmp_path / "model.safetensors")["all"].half())


def test_stacked_tensors_stand_in_the_order_of_their_names(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1, 2), "b": torch.ones(2, 2)}, tmp_path / "model.safetensors")

    with Weights(tmp_path, torch.float32, CPU) as weights:
        stacked = weights.stacked(["b", "a"], [(2, 2), (1, 2)])

    assert stacked.tolist() == [[1, 1], [1, 1], [0, 0]]


def test_random_weights_are_small_norms_are_one_and_both_are_the_same_each_time() -> None:
    first, second = ([w.take("a.weight", (64, 64)), w.take("norm.weight", (64,))] for w in (dummy(), dummy()))

    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert 0.019 < float(first[0].std()) < 0.021
    assert first[1].tolist() == [1.0] * 64


def dummy() -> DummyWeights:
    return DummyWeights(torch.float32, CPU)
