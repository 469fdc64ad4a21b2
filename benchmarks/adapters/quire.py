"""Quire, through its own offline interface."""

from adapters import Generate, Setting, serve
from quire_engine import LLM, SamplingParams


def load(setting: Setting) -> Generate:
    llm = LLM(
        model=str(setting.folder),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_num_seqs=setting.most,
        max_model_len=setting.length,
    )

    def generate(prompts: list[list[int]], tokens: int) -> list[list[int]]:
        params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return generate


if __name__ == "__main__":
    serve(load, ("quire-engine", "torch"))
