"""What a checkpoint says of itself: the only reader of config.json in the engine, or of what a GGUF file has instead.

Both of its dialects are understood, that of transformers 5 and the older one. A value that would change what is
computed, and that no model here computes, is a ConfigFailure which names it: nothing is ignored silently.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_api.footprint import DTYPE_BYTES, FAMILIES, ModelShape, stated_dtype
from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.files import stored_dtype
from quire_engine.gguf.config import config_of
from quire_engine.gguf.container import gguf_file
from quire_engine.ropes import Rope, latent_factor, ropes_of, stretched_len

__all__ = ["ModelSpec", "Pooling", "Routing", "read_spec"]

Config = Mapping[str, Any]

ACTIVATIONS = {  # as transformers calls them -> as `ops.Activation` does
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ACTIVATION_OF = {  # family -> what config.json calls it, and which it is if it is not there
    "gpt2": ("activation_function", "gelu_new"),
    "bert": ("hidden_act", "gelu"),
    "bloom": ("hidden_act", "gelu_pytorch_tanh"),
    "gemma2": ("hidden_activation", "gelu_pytorch_tanh"),
    "gemma3_text": ("hidden_activation", "gelu_pytorch_tanh"),
}
WINDOWS = {"mixtral": None, "phi3": None, "gpt_oss": 128}  # where config.json has none
EPSILON_NAMES = {"gpt2": "layer_norm_epsilon", "bloom": "layer_norm_epsilon", "bert": "layer_norm_eps"}

# What must be so, if it is there at all.
ONLY: dict[str, Any] = {
    "add_cross_attention": False,
    "apply_residual_connection_post_layernorm": False,
    "is_decoder": False,
    "moe_layer_freq": 1,
    "position_embedding_type": "absolute",
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "swiglu_limit": 7.0,
    "use_bidirectional_attention": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts a token goes to, and by what shares: the likeliest ones, their shares being how likely they are."""

    chosen: int
    renormalised: bool  # the shares of those chosen add up to 1
    sigmoid: bool = False  # how likely an expert is does not depend on the others
    groups: int = 1  # of experts that stand side by side
    chosen_groups: int = 1  # those chosen are of so many groups
    judged_by: int = 1  # of a group, so many of its likeliest: groups are chosen by their sum
    scale: float = 1.0  # of the shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How the hidden states of a text become its embedding."""

    kind: str  # cls: the first token's; last: the last token's; mean: of all tokens
    normalise: bool = True  # to length 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    architecture: str
    shape: ModelShape
    dtype: str  # of the checkpoint
    activation: str  # a value of `ops.Activation`
    norm_epsilon: float
    windows: tuple[int | None, ...]  # by layer: a token sees itself and the window - 1 before it
    ropes: tuple[Rope | None, ...]  # by layer
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    trained_len: int  # positions
    end_tokens: frozenset[int]
    sampling: Mapping[str, Any]  # what generation_config.json says of it, right or wrong
    pooling: Pooling
    routing: Routing | None = None  # of layers with experts
    quantization: Mapping[str, Any] | None = None  # quantization_config; quant/ reads what is below quant_method


def read_spec(folder: Path, longest: int | None = None) -> ModelSpec:
    """WeightsFailure if there is no readable model, ConfigFailure if it is one that we do not run. Texts have so many tokens at
    most; None: as many as it was trained for."""
    file = gguf_file(folder)
    config = _read_json(folder / "config.json", dict) if file is None else config_of(file)
    if config is None:
        raise WeightsFailure(f"no model in {folder}: config.json is missing")
    folder = folder if file is None else file.parent
    generation = _read_json(folder / "generation_config.json", dict) or {}
    try:
        return _spec(config, generation, folder, longest)
    except KeyError as error:
        path = folder / "config.json"
        raise WeightsFailure(f"{path} has no {error.args[0]}: is it the config of a language model?") from None
    except (TypeError, IndexError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise WeightsFailure(f"{folder / 'config.json'} has a value of the wrong kind: {error}") from None


def _spec(config: Config, generation: Config, folder: Path, longest: int | None) -> ModelSpec:
    architecture: str = config["architectures"][0]
    family = config.get("model_type", "llama")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigFailure(
            f"{architecture} is not supported yet: its model_type is {family!r}, and not one of {known}"
        )
    for name, allowed in ONLY.items():
        if config.get(name) not in (None, allowed):
            raise ConfigFailure(f"{name} is {config[name]!r}, which is not supported yet, only {allowed!r}")
    shape = ModelShape.from_config(config)
    types = _layer_types(config, family, shape.layers)
    by_type = ropes_of(config, family, shape, _positions(config), longest)
    gemma = family in ("gemma2", "gemma3_text")
    window = config.get("sliding_window", WINDOWS.get(family, 4096))
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    ropes = tuple(by_type.get(kind) for kind in types)
    return ModelSpec(
        architecture=architecture,
        shape=shape,
        dtype=_dtype(config, folder),
        activation=_activation(config, family),
        norm_epsilon=config[EPSILON_NAMES.get(family, "rms_norm_eps")],
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        ropes=ropes,
        attention_scale=(config.get("query_pre_attn_scalar", 256) if gemma else shape.head_dim) ** -0.5
        * (latent_factor(config) if shape.latent else 1.0),
        attention_softcap=config.get("attn_logit_softcapping", 50.0 if family == "gemma2" else None) if gemma else None,
        logit_softcap=config.get("final_logit_softcapping", 30.0 if family == "gemma2" else None) if gemma else None,
        trained_len=max(_positions(config), *(stretched_len(rope) for rope in ropes)),
        end_tokens=frozenset([ends] if isinstance(ends, int) else ends or []),
        sampling={
            name: _number(value, kind) for name, kind in SAMPLING.items() if (value := generation.get(name)) is not None
        },
        pooling=_pooling(folder, Pooling(kind="mean" if family == "bert" else "last")),
        routing=_routing(config, family, shape) if shape.sparse else None,
        quantization=_quantization(config, family),
    )


def _routing(config: Config, family: str, shape: ModelShape) -> Routing:
    if not 0 < shape.experts_per_token <= shape.experts:
        raise ValueError(f"num_experts_per_tok is {shape.experts_per_token}, and there are {shape.experts} experts")
    if family in ("deepseek_v2", "deepseek_v3"):
        return _routing_by_groups(config, family, shape)
    renormalised = family in ("mixtral", "gpt_oss") or bool(config.get("norm_topk_prob", False))
    return Routing(chosen=shape.experts_per_token, renormalised=renormalised)


def _routing_by_groups(config: Config, family: str, shape: ModelShape) -> Routing:
    third = family == "deepseek_v3"
    method = config.get("topk_method") or ("noaux_tc" if third else "greedy")
    known = ("noaux_tc",) if third else ("greedy", "group_limited_greedy")
    scoring = "sigmoid" if third else "softmax"
    if method not in known or config.get("scoring_func", scoring) != scoring:
        raise ConfigFailure(
            f"routing of a {family} by {method!r} of {config.get('scoring_func', scoring)!r} is not supported yet, only by "
            f"{' or '.join(known)} of {scoring}"
        )
    if not third and config.get("norm_topk_prob"):
        raise ConfigFailure(f"norm_topk_prob of a {family} is not supported yet")  # transformers leaves it out, too
    usual, judged_by = ((8, 4), 2) if third else ((1, 1), 1)
    groups, chosen_groups = config.get("n_group") or usual[0], config.get("topk_group") or usual[1]
    if method == "greedy":
        groups, chosen_groups = 1, 1
    if shape.experts % groups or not 0 < chosen_groups <= groups or shape.experts < groups * judged_by:
        raise ValueError(f"{shape.experts} experts in {groups} groups (n_group), of which {chosen_groups} (topk_group)")
    if shape.experts_per_token > shape.experts // groups * chosen_groups:
        raise ValueError(f"num_experts_per_tok is {shape.experts_per_token}, more than {chosen_groups} groups have")
    return Routing(
        chosen=shape.experts_per_token,
        renormalised=third and bool(config.get("norm_topk_prob", True)),
        sigmoid=third,
        groups=groups,
        chosen_groups=chosen_groups,
        judged_by=judged_by,
        scale=config.get("routed_scaling_factor") or (2.5 if third else 1.0),
    )


def _quantization(config: Config, family: str) -> Mapping[str, Any] | None:
    said: Mapping[str, Any] | None = config.get("quantization_config") or config.get("compression_config")
    if said is None:
        return None
    if not isinstance(said.get("quant_method"), str):
        raise ConfigFailure(f"quantization_config names no quant_method that it could be read by: {dict(said)}"[:300])
    if family == "gpt2":
        raise ConfigFailure("a quantized gpt2 is not supported yet: its matrices are stored the other way round")
    return said


SAMPLING = {"temperature": float, "top_p": float, "top_k": int, "min_p": float, "repetition_penalty": float}


def _number(value: Any, kind: type[int] | type[float]) -> Any:
    """50.0 is a whole number, to JSON; what is no number stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value if kind is int and value % 1 else kind(value)


def _dtype(config: Config, folder: Path) -> str:
    dtype = stated_dtype(config) or stored_dtype(folder) or "float32"
    if dtype not in DTYPE_BYTES:
        raise ConfigFailure(f"weights of type {dtype!r} are not supported yet, only {', '.join(DTYPE_BYTES)}")
    return dtype


def _activation(config: Config, family: str) -> str:
    name, default = ACTIVATION_OF.get(family, ("hidden_act", "silu"))
    activation = config.get(name) or default
    if family == "gpt_oss":
        return family  # it has a gate of its own, whatever hidden_act says
    if activation not in ACTIVATIONS:
        raise ConfigFailure(f"activation {activation!r} is not supported yet, only {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def _positions(config: Config) -> int:
    if config.get("model_type") == "bloom":  # which has none, and was trained on so many
        return int(config.get("seq_length", 2048))
    positions: int = config["n_positions" if "n_positions" in config else "max_position_embeddings"]
    return positions


def _layer_types(config: Config, family: str, layers: int) -> list[str]:
    """By layer, 'full_attention' or 'sliding_attention'."""
    if family in ("mistral", "mixtral", "phi3"):
        window = config.get("sliding_window", 4096 if family == "mistral" else None)
        return ["full_attention" if window is None else "sliding_attention"] * layers
    if family == "qwen3_moe":
        return ["sliding_attention" if config.get("use_sliding_window") else "full_attention"] * layers
    if family not in ("gemma2", "gemma3_text", "gpt_oss", "qwen2", "qwen3"):
        return ["full_attention"] * layers
    windowed = family.startswith(("gemma", "gpt_oss")) or config.get("use_sliding_window", False)
    types = config.get("layer_types")
    if types is None and family.startswith("qwen"):
        first = config.get("max_window_layers", 28)
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    elif types is None:
        every = config.get("sliding_window_pattern") or (6 if family == "gemma3_text" else 2)
        types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    if len(types) != layers:
        raise ValueError(f"layer_types names {len(types)} layers, and num_hidden_layers is {layers}")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigFailure(
                f"a layer of type {kind!r} is not supported yet, only full_attention and sliding_attention"
            )
    return [kind if windowed else "full_attention" for kind in types]


def _pooling(folder: Path, default: Pooling) -> Pooling:
    """What sentence-transformers keeps beside the model, if it does."""
    modules = _read_json(folder / "modules.json", list)
    if modules is None:
        return default
    pooling, normalise = default, False
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = Pooling(kind=_pooling_kind(_read_json(folder / module["path"] / "config.json", dict) or {}))
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise ConfigFailure(f"an embedding module of type {module['type']} is not supported yet")
    return Pooling(kind=pooling.kind, normalise=normalise)


def _pooling_kind(config: Config) -> str:
    kinds = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}
    modes = [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]
    modes += [config["pooling_mode"]] if "pooling_mode" in config else []
    if len(modes) != 1 or modes[0] not in kinds:
        raise ConfigFailure(
            f"pooling by {' and '.join(modes) or 'nothing'} is not supported yet, only cls, mean or lasttoken"
        )
    return kinds[modes[0]]


def _read_json(path: Path, kind: type) -> Any:
    """None if there is no such file."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WeightsFailure(f"{path} cannot be read: {error}") from None
    if not isinstance(data, kind):
        raise WeightsFailure(f"{path} is not a JSON {'object' if kind is dict else 'list'}")
    return data
