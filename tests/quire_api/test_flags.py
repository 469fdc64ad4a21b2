"""EngineConfig <-> argv."""

from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_api import EngineConfig, InvalidInput
from quire_api.engine import BlockSize, CacheDType, Device, DType, Quantization
from quire_api.flags import MOOT, ONLY, flag, from_argv, take_moot, to_argv

text = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
several = st.lists(text.filter(lambda word: word != "--"), max_size=3).map(
    tuple
)  # argparse takes it for the end of options
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "model": text,
    "served_model_name": several,
    "dtype": st.sampled_from(get_args(DType)),
    "device": st.sampled_from(get_args(Device)),
    "quantization": st.sampled_from(get_args(Quantization)),
    "kv_cache_dtype": st.sampled_from(get_args(CacheDType)),
    "block_size": st.sampled_from(get_args(BlockSize)),
    "max_model_len": st.none() | st.integers(16, 100_000),
    "kv_cache_gib": st.none() | st.floats(0.001, 4096),
    "max_num_seqs": st.integers(1, 4096),
    "tensor_parallel_size": st.integers(1, 64),
    "pipeline_parallel_size": st.integers(1, 64),
    "nnodes": st.none() | st.integers(1, 64),
    "node_rank": st.none() | st.integers(0, 63),
    "master_addr": st.none() | text,
    "master_port": st.integers(1, 65535),
    "max_num_batched_tokens": st.integers(4096, 100_000),
    "long_prefill_token_threshold": st.none() | st.integers(1, 100_000),
    "scheduling_policy": st.sampled_from(["fcfs", "priority"]),
    "enable_prefix_caching": st.booleans(),
    "enforce_eager": st.booleans(),
    "swap_space_gib": st.floats(0, 4096),
    "download_dir": st.none() | text,
    "include": several,
    "verify_weights": st.sampled_from(["manifest", "always"]),
    "load_format": st.sampled_from(["auto", "dummy"]),
    "seed": st.integers(0, 2**32 - 1),
    "host": text,
    "port": st.integers(0, 65535),
    "uds": st.none() | text,
    "shutdown_timeout": st.floats(0, 3600),
    "max_num_queued_reqs": st.none() | st.integers(0, 1_000_000),
    "generation_config": st.sampled_from(["auto", "vllm"]),
    "max_output_tokens": st.none() | st.integers(1, 100_000),
    "chat_template": st.none() | text,
    "tool_call_parser": text,
    "reasoning_parser": text,
    "admin_host": text,
    "admin_port": st.none() | st.integers(0, 65535),
    "admin_on_main_port": st.booleans(),
    "api_key": several,
    "api_key_file": st.none() | text,
    "ssl_certfile": st.none() | text,
    "ssl_keyfile": st.none() | text,
    "allowed_origins": several,
    "max_body_mib": st.floats(0.5, 4096),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log_format": st.sampled_from(["text", "json"]),
    "enable_log_requests": st.booleans(),
    "log_prompts": st.booleans(),
}
configs = st.builds(EngineConfig, **STRATEGIES)


@settings(
    suppress_health_check=[HealthCheck.too_slow], deadline=None
)  # so many fields take their time on a busy machine
@given(configs)
def test_config_to_argv_and_back_is_the_identity(config: EngineConfig) -> None:
    assert from_argv(to_argv(config)) == config


def test_strategy_covers_every_field() -> None:
    """A new option without a place in the strategy above would go untested."""
    assert set(EngineConfig.model_fields) == set(STRATEGIES)


def test_only_set_options_are_rendered() -> None:
    config = EngineConfig(model="m", max_num_seqs=256)

    assert to_argv(config) == ["--max-num-seqs=256", "--model=m"]


def test_a_list_takes_several_values_and_repeats() -> None:
    together = from_argv(["--model", "m", "--served-model-name", "a", "b"])
    repeated = from_argv(["--model=m", "--served-model-name=a", "--served-model-name=b"])

    assert together.served_model_name == repeated.served_model_name == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max-modle-len=5"], '--max-modle-len: unknown flag; did you mean "--max-model-len"?'),
        (["--zzz"], "--zzz: unknown flag; known here: "),
        (["--block-size=12"], "--block-size: must be 8, 16 or 32, not 12"),
        (["--dtype=int4"], "--dtype: must be 'auto', 'float32', 'bfloat16' or 'float16', not 'int4'"),
        (["--max-num-seqs=many"], "--max-num-seqs: must be a valid integer"),
        (["--port=70000"], "--port: must be less than or equal to 65535, not '70000'"),
        (["--max-num-seqs=64", "--max-num-batched-tokens=32"], "maxNumBatchedTokens must be at least maxNumSeqs"),
        (["--seed"], "--seed: expected one argument"),
        ([], "--model: required, but not set"),
        (["stray"], "stray: unexpected argument"),
    ],
)
def test_bad_flag_is_refused_with_its_name_and_the_fix(argv: list[str], says: str) -> None:
    model = [] if argv == [] else ["--model=m"]

    with pytest.raises(InvalidInput) as refused:
        from_argv([*model, *argv])

    assert says in str(refused.value)


def test_a_command_line_of_vllm_is_understood() -> None:
    argv = (
        "--swap-space=4 --enable-chunked-prefill --num-scheduler-steps 8 --disable-log-requests --no-async-scheduling"
    )

    kept, warnings = take_moot(["m", *argv.split(), "--max-num-seqs", "8"])

    assert kept == ["m", "--swap-space-gib=4", "--no-enable-log-requests", "--max-num-seqs", "8"]
    assert [warning.split()[0] for warning in warnings] == [
        "--enable-chunked-prefill", "--num-scheduler-steps", "--no-async-scheduling",
    ]  # fmt: skip


def test_nothing_that_we_have_is_moot() -> None:
    assert not {flag(name) for name in EngineConfig.model_fields} & (set(MOOT) | set(ONLY))


def test_of_what_we_have_one_value_of_another_is_refused() -> None:
    assert take_moot(["--data-parallel-size", "1", "--max-logprobs=20"]) == ([], [])
    with pytest.raises(InvalidInput, match="--data-parallel-size: 2 is not supported yet, only 1"):
        take_moot(["--data-parallel-size", "2"])
