"""The least a step can take: by hand for the shape of Llama-3.1-8B, and what the metric makes of it."""

from array import array

import pytest

from quire_api.footprint import ModelShape
from quire_engine.core.scheduler import Load
from quire_engine.process.link import Report
from quire_engine.runtime.roofline import Limits, limits_of, step_seconds
from quire_engine.server.metrics import EngineMetrics

SHAPE = ModelShape.from_config(
    {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    }
)  # fmt: skip
H200 = Limits(read_bytes_per_s=4.3e12, flop_per_s=790e12, name="H200")


def rate(tokens: int, seconds: float) -> float:
    return tokens / seconds


@pytest.mark.parametrize(("batch", "expected"), [(1, 284), (32, 7128), (128, 17099)])
def test_decode_is_what_is_read(batch: int, expected: float) -> None:
    seconds = step_seconds(SHAPE, "bfloat16", [(1023, 1, True)] * batch, H200)

    assert rate(batch, seconds) == pytest.approx(expected, rel=0.01)


def test_a_prompt_is_what_is_multiplied() -> None:
    seconds = step_seconds(SHAPE, "bfloat16", [(0, 2048, True)], H200)

    assert seconds == pytest.approx(37.6e-3, rel=0.02)


def test_pieces_of_a_prompt_multiply_as_much_as_all_of_it() -> None:
    pieces = [step_seconds(SHAPE, "bfloat16", [(start, 4096, False)], H200) for start in (0, 4096)]

    assert sum(pieces) == pytest.approx(step_seconds(SHAPE, "bfloat16", [(0, 8192, False)], H200), rel=1e-3)


def test_of_experts_only_those_count_that_a_token_chooses() -> None:
    config = {
        "model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    one, many = (step_seconds(shape, "bfloat16", [(0, 1, True)] * count, H200) for count in (1, 64))

    assert one * H200.read_bytes_per_s == pytest.approx(2 * 12.8e9, rel=0.02)
    assert many * H200.read_bytes_per_s == pytest.approx(2 * 46.6e9, rel=0.02)


def test_experts_have_a_width_of_their_own() -> None:
    """The sizes of Qwen3-30B-A3B, which chooses 3.3 of its 30.5 billion weights for a token."""
    config = {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "head_dim": 128,
        "num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    embedding = 151936 * 2048
    one, many = (step_seconds(shape, "bfloat16", [(0, 1, True)] * count, H200) for count in (1, 256))

    assert one * H200.read_bytes_per_s == pytest.approx(2 * (3.35e9 - embedding), rel=0.02)
    assert many * H200.read_bytes_per_s == pytest.approx(2 * (30.53e9 - embedding), rel=0.02)


def test_what_stays_in_few_bits_is_not_read() -> None:
    plain, fewer = (step_seconds(SHAPE, "bfloat16", [(0, 1, True)], H200, saved_bytes=saved) for saved in (0, 10**10))

    assert (plain - fewer) * H200.read_bytes_per_s == pytest.approx(1e10)


def test_nothing_takes_no_time() -> None:
    assert step_seconds(SHAPE, "bfloat16", [], H200) == 0


@pytest.mark.parametrize(
    ("name", "bytes_per_s"),
    [
        ("NVIDIA H200", 4.8e12), ("NVIDIA A100-SXM4-80GB", 2.039e12), ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12), ("NVIDIA L40S", 0.864e12), ("NVIDIA A10", 0.6e12),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_name(name: str, bytes_per_s: float) -> None:
    limits = limits_of(name)

    assert limits is not None
    assert limits.read_bytes_per_s == bytes_per_s


@pytest.mark.parametrize("name", ["NVIDIA A1000", "NVIDIA L400", "AMD Instinct MI300X"])
def test_a_device_that_nobody_entered_is_not_known(name: str) -> None:
    assert limits_of(name) is None


def report(least_s: float) -> Report:
    return Report(
        ids=array("q"), tokens=array("q"), finished={}, logprobs={}, prompt_logprobs={}, cached={}, rejected={},
        load=Load(running=0, waiting=0, kv_usage=0, preemptions=0, finished=0, prefix_queries=0, prefix_hits=0),
        started=0.0, seconds=0.004, num_tokens=3, least_s=least_s,
    )  # fmt: skip


def test_the_ratio_is_a_metric_where_limits_are_known_and_absent_elsewhere() -> None:
    metrics = EngineMetrics("m")

    metrics.on_report(report(0.0))
    before = metrics.render()
    metrics.on_report(report(0.003))

    assert b"quire_roofline_ratio{" not in before
    assert b'quire_roofline_ratio{engine="0",model_name="m"} 0.75' in metrics.render()
