"""Every option of the engine, declared once.

A field here becomes a flag of `quire serve` (flags.py), a line of the reference (generate.py) and,
when it stands in `EngineOptions`, a property of `spec.engine` in the resource (crd.py). To add an
option, add the field, use it, test it; then run `make generate`. A field is added when its feature
works: nothing is accepted and ignored.
"""

from typing import ClassVar, Literal

from pydantic import Field

from quire_api.base import Rule, Strict

__all__ = ["BlockSize", "CacheDType", "DType", "Device", "EngineConfig", "EngineOptions", "Quantization"]

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "awq", "gptq", "fp8", "compressed-tensors", "gguf", "mxfp4"]
CacheDType = Literal["auto", "fp8"]
Device = Literal["auto", "cpu", "cuda"]
BlockSize = Literal[8, 16, 32]


class EngineOptions(Strict):
    """The options a user may set in a resource, and on the command line."""

    dtype: DType = Field(
        "auto",
        description="Number format of weights and activations. `auto` takes the checkpoint's own.",
        examples=["bfloat16"],
    )
    quantization: Quantization = Field(
        "auto",
        description="The method by which the checkpoint is quantized: `auto` takes its own, if it has one; another than its own is refused. "
        "On a CPU weights are dequantised while they are read, and need as much memory as plain ones; on a GPU they stay as they are where there are kernels.",
        examples=["awq"],
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        le=16_777_216,
        description="Most tokens in one request, prompt and output together. "
        "Unset: what the model was trained for, or what the KV cache holds if that is less.",
        examples=[32768],
    )
    block_size: BlockSize = Field(
        16,
        description="Tokens in one block of the KV cache. Smaller wastes less memory, larger needs fewer look-ups.",
        examples=[16],
    )
    kv_cache_gib: float | None = Field(
        None,
        ge=0.001,
        le=4096,
        description="Memory for the KV cache in GiB. Unset: what `maxNumSeqs` requests of full length need, "
        "at most 40 % of the memory that is free once the weights are loaded.",
        examples=[4.0],
    )
    kv_cache_dtype: CacheDType = Field(
        "auto",
        description="Number format of the KV cache. `auto` is that of the activations. `fp8` (E4M3, without scales) takes half of 16 bits "
        "or a quarter of 32, so that twice as much fits, for numbers with a sixteenth of error; only on a GPU.",
        examples=["fp8"],
    )
    max_num_seqs: int = Field(
        256,
        ge=1,
        le=4096,
        description="Most requests that run in one step. More than that wait in the queue.",
        examples=[128],
    )
    max_num_batched_tokens: int = Field(
        2048,
        ge=1,
        le=1_048_576,
        description="Most tokens in one step. A longer prompt is computed in chunks, so that it does not hold up the requests beside it.",
        examples=[8192],
    )
    long_prefill_token_threshold: int | None = Field(
        None,
        ge=1,
        le=1_048_576,
        description="A prompt with more tokens to go than this lets shorter ones pass, and itself moves on by at least this much a step. "
        "Unset: a quarter of `maxNumBatchedTokens`.",
        examples=[1024],
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs",
        description="Who goes first: `fcfs` by arrival, `priority` by the request's `priority`, lower first, then by arrival.",
        examples=["priority"],
    )
    enable_prefix_caching: bool = Field(
        True,
        description="Keep what was computed of finished requests while there is room, and share it with requests that begin alike.",
        examples=[False],
    )
    swap_space_gib: float = Field(
        0.0,
        ge=0,
        le=4096,
        description="Host memory in GiB for the KV cache of preempted requests. Without it, or where it is cheaper, they are computed again.",
        examples=[4.0],
    )
    max_num_queued_reqs: int | None = Field(
        None,
        ge=0,
        le=1_000_000,
        description="Most sequences that wait for their first step, and requests that are being read; what comes beyond is answered 429 with Retry-After. Unset: no bound.",
        examples=[512],
    )
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=16_777_216,
        description="Most tokens of one answer, whatever the request asks for. Unset: what the model's length leaves.",
        examples=[4096],
    )
    enforce_eager: bool = Field(
        False,
        description="Launch every kernel of every step anew, instead of recording steps that repeat: slower, for finding faults. "
        "On a GPU that means no CUDA graphs; what these would take of its memory is left for the KV cache.",
        examples=[True],
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=131_072,
        description="A Jinja template in place of the checkpoint's own: its text, or the path of a file that has it.",
        examples=["/templates/chat.jinja"],
    )
    generation_config: Literal["auto", "vllm"] = Field(
        "auto",
        description="How requests are sampled that do not say: `auto` takes temperature and the like from the checkpoint's "
        "generation_config.json, `vllm` takes the plain defaults.",
        examples=["vllm"],
    )
    tool_call_parser: str = Field(
        "auto",
        max_length=64,
        description="How the model writes tool calls. `auto` reads it off the chat template; `none` leaves them in the text.",
        examples=["hermes"],
    )
    reasoning_parser: str = Field(
        "auto",
        max_length=64,
        description="How the model marks its reasoning. `auto` reads it off the chat template; `none` leaves it in the text.",
        examples=["qwen3"],
    )
    seed: int = Field(
        0,
        ge=0,
        le=4_294_967_295,
        description="Seed of the sampling of requests that bring none.",
        examples=[42],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxNumBatchedTokens) || self.maxNumBatchedTokens >= (has(self.maxNumSeqs) ? self.maxNumSeqs : 256)",
            message="maxNumBatchedTokens must be at least maxNumSeqs (256 unless set), "
            "for every running request takes one token of a step: raise the one or lower the other",
            holds=lambda o: (
                o.max_num_batched_tokens >= o.max_num_seqs or "max_num_batched_tokens" not in o.model_fields_set
            ),
        ),
        Rule(
            cel="has(self.maxNumBatchedTokens) || !has(self.maxNumSeqs) || self.maxNumSeqs <= 2048",
            message="maxNumSeqs over 2048 needs a larger maxNumBatchedTokens (2048 unless set): set both",
            holds=lambda o: (
                o.max_num_batched_tokens >= o.max_num_seqs or "max_num_batched_tokens" in o.model_fields_set
            ),
        ),
    )


class EngineConfig(EngineOptions):
    """One engine: the user's options, and what the place it runs in decides."""

    model: str = Field(
        description="The model: a folder with config.json and safetensors, a GGUF file, or a folder of one fetched model; `org/model` or `hf://org/model@revision`, "
        "`s3://bucket/prefix` or `https://.../manifest.json`, which are fetched first; `file:///path`, `pvc://claim/path`, "
        "or `builtin://quire-tiny`.",
        min_length=1,
        max_length=2048,
        examples=["builtin://quire-tiny"],
    )
    download_dir: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Where models are fetched to, and looked for. Unset: `$XDG_CACHE_HOME/quire/models`.",
        examples=["/models"],
    )
    include: tuple[str, ...] = Field(
        (),
        description="Files to fetch, as patterns of the shell, in place of those chosen by rule; configuration and tokenizer come along. "
        "Unset: the safetensors, or the only GGUF file.",
        examples=[("*.safetensors",)],
    )
    verify_weights: Literal["manifest", "always"] = Field(
        "manifest",
        description="What is compared before a fetched model is loaded: `manifest` that every file has its size, "
        "`always` the hash of every file, too.",
        examples=["always"],
    )
    load_format: Literal["auto", "dummy"] = Field(
        "auto",
        description="`auto` reads the checkpoint's weights; `dummy` makes up random ones of its shapes, for benchmarks.",
        examples=["dummy"],
    )
    served_model_name: tuple[str, ...] = Field(
        (),
        description="The names which clients may send as `model`; metrics carry the first one. Unset: the model's folder name.",
        examples=[("tinyllama-1.1b",)],
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Ranks, each a process with a device of its own, that compute every layer together: each has a part of "
        "its heads and columns. On CPUs they share the cores and the memory. `--kv-cache-gib` is of each.",
        examples=[2],
    )
    pipeline_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Stages that have the layers one after another, each of `--tensor-parallel-size` ranks. "
        "One step is under way in one stage at a time: it makes room, not speed.",
        examples=[2],
    )
    nnodes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Machines over which the ranks are spread, as many on each; every one is started with the same flags but "
        "`--node-rank`. Unset: `$LWS_GROUP_SIZE`, or 1.",
        examples=[2],
    )
    node_rank: int | None = Field(
        None,
        ge=0,
        le=63,
        description="Which of these machines this is: 0 serves, the others run their ranks and answer /livez. "
        "Unset: `$LWS_WORKER_INDEX`, or 0.",
        examples=[1],
    )
    master_addr: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        description="The address of node 0, at which all nodes reach it. Unset: `$LWS_LEADER_ADDRESS`.",
        examples=["10.0.0.4"],
    )
    master_port: int = Field(
        29501,
        ge=1,
        le=65535,
        description="The port at which node 0 waits for the others. From there on they agree on further ports; only nodes of the "
        "group should reach any of them.",
        examples=[29501],
    )
    device: Device = Field(
        "auto",
        description="Where the model runs. `auto` takes a GPU when there is one.",
        examples=["cpu"],
    )
    host: str = Field("127.0.0.1", description="Address to listen on.", examples=["0.0.0.0"])
    port: int = Field(
        8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.", examples=[8000]
    )
    uds: str | None = Field(
        None, description="Listen on this Unix socket instead of host and port.", examples=["/run/quire.sock"]
    )
    admin_host: str = Field("127.0.0.1", description="Address of the admin port.", examples=["0.0.0.0"])
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port for /admin/drain, resume and state, which everybody who reaches it may call. Unset: none.",
        examples=[8001],
    )
    admin_on_main_port: bool = Field(
        False,
        description="Serve the admin endpoints on the main port, too, behind its API keys.",
        examples=[True],
    )
    api_key: tuple[str, ...] = Field(
        (),
        description="Keys of which requests must bring one, as `Authorization: Bearer KEY`. Others see them among the processes: "
        "prefer $QUIRE_API_KEY or a file.",
        examples=[("key-1", "key-2")],
    )
    api_key_file: str | None = Field(
        None, description="A file with such keys, one a line; `#` begins a comment.", examples=["/etc/quire/keys"]
    )
    ssl_certfile: str | None = Field(
        None, description="Serve HTTPS with this certificate chain (PEM).", examples=["/tls/tls.crt"]
    )
    ssl_keyfile: str | None = Field(None, description="The certificate's key (PEM).", examples=["/tls/tls.key"])
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="Origins whose pages may call from a browser; `*` is every one. Unset: none.",
        examples=[("https://chat.example.com",)],
    )
    max_body_mib: float = Field(
        32.0,
        gt=0,
        le=4096,
        description="Largest body of a request in MiB; larger ones are answered 413.",
        examples=[8.0],
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least weight of what is logged.", examples=["warning"]
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="`json` writes one object a line, for log collectors.", examples=["json"]
    )
    enable_log_requests: bool = Field(
        False,
        description="Log a line for each request: id, endpoint, status and times; never its text.",
        examples=[True],
    )
    log_prompts: bool = Field(
        False,
        description="Log the text of prompts, cut after 2,000 characters.",
        examples=[True],
    )
    shutdown_timeout: float = Field(
        300.0,
        ge=0,
        le=3600,
        description="Seconds which accepted requests have to finish after SIGTERM; then they are cut with an error event.",
        examples=[120.0],
    )
