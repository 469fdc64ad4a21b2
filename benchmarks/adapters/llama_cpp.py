"""llama.cpp through its C interface: the high-level binding runs one sequence, the library a batch of them.

A context is made for each number of sequences, for it lays out its KV cache by that.
"""

from functools import cache

import llama_cpp as native  # type: ignore[import-not-found]
import numpy as np

from adapters import Generate, Setting, serve

BATCH = 2048  # tokens of a call at most, the library's default


def load(setting: Setting) -> Generate:
    native.llama_backend_init()
    model = native.llama_model_load_from_file(
        str(setting.folder / "model.gguf").encode(), native.llama_model_default_params()
    )
    vocabulary = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))

    @cache
    def context(sequences: int) -> native.llama_context_p:
        params = native.llama_context_default_params()
        params.n_ctx = sequences * setting.length
        params.n_seq_max = sequences
        params.n_batch = BATCH
        params.n_threads = params.n_threads_batch = setting.threads
        return native.llama_init_from_model(model, params)

    batch = native.llama_batch_init(BATCH, 0, 1)

    def step(ctx: native.llama_context_p, work: list[tuple[int, int, list[int]]]) -> list[int]:
        """Of each sequence its number, how many tokens it has had, and the next ones; the token that follows."""
        at = 0
        for sequence, past, tokens in work:
            for offset, token in enumerate(tokens):
                batch.token[at] = token
                batch.pos[at] = past + offset
                batch.n_seq_id[at] = 1
                batch.seq_id[at][0] = sequence
                batch.logits[at] = offset == len(tokens) - 1
                at += 1
        batch.n_tokens = at
        if status := native.llama_decode(ctx, batch):
            raise RuntimeError(f"llama_decode returned {status} for {at} tokens of {len(work)} sequences")
        logits = np.ctypeslib.as_array(native.llama_get_logits(ctx), (len(work), vocabulary))
        return [int(token) for token in logits.argmax(axis=1)]

    def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        ctx = context(len(prompts))
        native.llama_memory_clear(native.llama_get_memory(ctx), False)
        length = len(prompts[0])
        fit = BATCH // length
        outputs: list[list[int]] = []
        for first in range(0, len(prompts), fit):
            chunk = [(first + i, 0, prompt) for i, prompt in enumerate(prompts[first : first + fit])]
            outputs += [[token] for token in step(ctx, chunk)]
        for past in range(length, length + tokens - 1):
            for output, token in zip(
                outputs, step(ctx, [(i, past, out[-1:]) for i, out in enumerate(outputs)]), strict=True
            ):
                output.append(token)
        return outputs

    return generate


if __name__ == "__main__":
    serve(load, ("llama-cpp-python",))
