"""transformers' continuous batching, with its manager running from the start to the end, as a server has it:
`generate_batch` starts and stops a thread at every call, which costs 0.3 s."""

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from adapters import Generate, Setting, serve

BLOCK = 64  # tokens of a block of the KV cache


def load(setting: Setting) -> Generate:
    torch.set_num_threads(setting.threads)
    model = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.bfloat16, attn_implementation="sdpa")
    manager = model.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1),  # type: ignore[no-untyped-call]  # no token is -1: go on
        ContinuousBatchingConfig(
            block_size=BLOCK,
            num_blocks=setting.most * -(-setting.length // BLOCK) + 1,
            max_batch_tokens=4096,
            max_requests_per_batch=setting.most,
        ),
    )
    manager.start()

    def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        names = manager.add_requests(prompts, max_new_tokens=tokens)
        outputs: dict[str, list[int]] = {}
        while len(outputs) < len(prompts):
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("the generation thread ended")
            if result is not None and result.is_finished():
                outputs[result.request_id] = result.generated_tokens
        return [outputs[name] for name in names]

    return generate


if __name__ == "__main__":
    serve(load, ("transformers", "torch"))
