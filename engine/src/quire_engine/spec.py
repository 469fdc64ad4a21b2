"""What a checkpoint says of itself: the only reader of config.json in the engine."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_api.footprint import DTYPE_BYTES, ModelShape
from quire_engine.errors import ConfigFailure, WeightsFailure

__all__ = ["ModelSpec", "read_spec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    architecture: str
    shape: ModelShape
    dtype: str  # of the checkpoint
    norm_epsilon: float
    rope_theta: float
    trained_len: int  # positions
    end_tokens: frozenset[int]


def read_spec(folder: Path) -> ModelSpec:
    """WeightsFailure if there is no readable model, ConfigFailure if it is one that we do not run."""
    config = _read_json(folder / "config.json")
    if config is None:
        raise WeightsFailure(f"no model in {folder}: config.json is missing")
    try:
        return _spec(config, _read_json(folder / "generation_config.json") or {})
    except KeyError as error:
        path = folder / "config.json"
        raise WeightsFailure(f"{path} has no {error.args[0]}: is it the config of a language model?") from None
    except (TypeError, IndexError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise WeightsFailure(f"{folder / 'config.json'} has a value of the wrong kind: {error}") from None


def _spec(config: dict[str, Any], generation: dict[str, Any]) -> ModelSpec:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # transformers 5 renamed it
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ConfigFailure(f"rotary embedding {kind!r} is not supported yet, only plain rotary embedding")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigFailure(f"activation {config['hidden_act']!r} is not supported yet, only 'silu'")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPE_BYTES:
        raise ConfigFailure(f"weights of type {dtype!r} are not supported yet, only {', '.join(DTYPE_BYTES)}")
    ends = generation.get("eos_token_id", config.get("eos_token_id"))
    return ModelSpec(
        architecture=config["architectures"][0],
        shape=ModelShape.from_config(config),
        dtype=dtype,
        norm_epsilon=config["rms_norm_eps"],
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        trained_len=config["max_position_embeddings"],
        end_tokens=frozenset([ends] if isinstance(ends, int) else ends or []),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise WeightsFailure(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise WeightsFailure(f"{path} is not a JSON object")
    return data
