"""transformers' continuous batching on the same shape, in a process of its own: `peer.py CONFIG DEVICE DTYPE BATCH PROMPT OUTPUT`.

Prints one line of JSON. Its weights are made up as well; its manager runs from the start to the end, as in a server.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

BLOCK = 64  # tokens of a block of the KV cache


def main(folder: Path, device: str, dtype: str, batch: int, prompt: int, output: int) -> dict[str, Any]:
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
    blocks = batch * -(-(prompt + output) // BLOCK) + 1
    manager = model.init_continuous_batching(
        GenerationConfig(do_sample=False, eos_token_id=-1),  # no token is -1: go on
        ContinuousBatchingConfig(
            block_size=BLOCK, num_blocks=blocks, max_batch_tokens=8192, max_requests_per_batch=batch
        ),
    )
    manager.start()

    def generate(tokens: int) -> float:
        prompts = [[(7 * i + 31 * n) % (config.vocab_size - 3) + 3 for i in range(prompt)] for n in range(batch)]
        started = time.perf_counter()
        manager.add_requests(prompts, max_new_tokens=tokens)
        finished = 0
        while finished < batch:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError("the generation thread ended")
            finished += result is not None and result.is_finished()
        return time.perf_counter() - started

    generate(4)
    seconds = generate(output)
    manager.stop(block=False)
    return {
        "engine": "transformers", "version": transformers.__version__, "users": batch, "prompt": prompt, "output": output,
        "seconds": seconds, "tokens_per_s": batch * output / seconds,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7]))), flush=True)
    import os

    os._exit(0)  # its threads would be waited for
