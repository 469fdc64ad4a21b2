"""The engine as a library: `LLM(...).generate(...)`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakes.checkpoints import save_case, tiny_folder
from transformers import AutoTokenizer, LlamaForCausalLM

import quire_engine
from quire_api import InvalidInput
from quire_engine.errors import ConfigFailure, RequestRejected, WeightsFailure
from quire_engine.llm import LLM
from quire_engine.params import SamplingParams

PROMPTS = ["The capital of France is", "Once upon a time", "1 + 1 =", "é漢🙂 and", "a"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


def make(**options: object) -> LLM:
    return LLM("builtin://quire-tiny", **{"dtype": "float32", "kv_cache_gib": 0.02, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return make()


def test_greedy_text_is_that_of_transformers(llm: LLM) -> None:
    oracle = LlamaForCausalLM.from_pretrained(tiny_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())

    seen = llm.generate(PROMPTS, GREEDY, use_tqdm=False)

    for prompt, output in zip(PROMPTS, seen, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        theirs = oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )[0, ids.shape[1] :]  # fmt: skip
        assert output.prompt == prompt
        assert output.prompt_token_ids == ids[0].tolist()
        assert output.outputs[0].token_ids == theirs.tolist()
        assert output.outputs[0].text == tokenizer.decode(theirs, skip_special_tokens=True)
        assert output.outputs[0].finish_reason == "length"
        assert output.finished


def test_any_shape_of_prompts_gives_the_same(llm: LLM) -> None:
    text = PROMPTS[0]
    ids = llm.get_tokenizer().encode(text, add_special_tokens=True)

    shapes = [
        text,
        [text],
        {"prompt": text},
        [{"prompt": text}],
        {"prompt_token_ids": ids},
        [{"prompt_token_ids": ids}],
    ]

    answers = {tuple(llm.generate(shape, GREEDY, use_tqdm=False)[0].outputs[0].token_ids) for shape in shapes}  # type: ignore[arg-type]
    assert len(answers) == 1
    assert llm.generate([], use_tqdm=False) == []


def test_outputs_are_in_the_order_of_the_prompts_whoever_ends_first(llm: LLM) -> None:
    lengths = [30, 1, 12, 5, 20]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in lengths]

    seen = llm.generate(PROMPTS, params, use_tqdm=False, priority=[3, 1, 2, 0, 0])

    assert [output.prompt for output in seen] == PROMPTS
    assert [len(output.outputs[0].token_ids) for output in seen] == lengths


def test_several_answers_differ_and_repeat_with_the_seed(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=5, temperature=2.0, max_tokens=12, ignore_eos=True, prompt_logprobs=1)

    first, second = (llm.generate(PROMPTS[0], params, use_tqdm=False)[0] for _ in range(2))
    single = llm.generate(
        PROMPTS[0], SamplingParams(seed=5, temperature=2.0, max_tokens=12, ignore_eos=True), use_tqdm=False
    )[0]

    assert [output.index for output in first.outputs] == [0, 1, 2, 3]
    assert [o.token_ids for o in first.outputs] == [o.token_ids for o in second.outputs]
    assert len({tuple(output.token_ids) for output in first.outputs}) == 4
    assert first.outputs[0].token_ids == single.outputs[0].token_ids
    assert len(first.prompt_logprobs or ()) == len(first.prompt_token_ids)


def test_without_a_seed_each_request_draws_anew_and_each_engine_alike() -> None:
    params = SamplingParams(temperature=2.0, max_tokens=12, ignore_eos=True)

    runs = [
        [o.outputs[0].text for o in make(seed=s).generate(PROMPTS[:1] * 2, params, use_tqdm=False)] for s in (3, 3, 4)
    ]

    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_log_probabilities_come_with_the_tokens(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=2, prompt_logprobs=0)

    output = llm.generate(PROMPTS[0], params, use_tqdm=False)[0]

    answer = output.outputs[0]
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.token_ids)
    for token, found in zip(answer.token_ids, answer.logprobs, strict=True):
        assert len(found) == 2  # the best is the one that was taken
        assert found[token].rank == 1
        assert found[token].decoded_token == llm.get_tokenizer().decode([token])
    total = sum(found[token].logprob for token, found in zip(answer.token_ids, answer.logprobs, strict=True))
    assert answer.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [[*found] for found in output.prompt_logprobs[1:] if found] == [[t] for t in output.prompt_token_ids[1:]]


def test_a_stop_string_ends_the_text_and_is_shown_if_asked_for(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].text
    stop = whole[10:13]

    hidden, shown = (
        llm.generate(
            PROMPTS[0],
            SamplingParams(
                temperature=0.0, max_tokens=20, ignore_eos=True, stop=[stop], include_stop_str_in_output=include
            ),
            use_tqdm=False,
        )[0].outputs[0]
        for include in (False, True)
    )

    assert hidden.text == whole[: whole.index(stop)]
    assert shown.text == hidden.text + stop
    assert (hidden.finish_reason, hidden.stop_reason) == ("stop", stop)


def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM) -> None:
    tokens = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    wanted = tokens[1]

    answer = llm.generate(
        PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=20, stop_token_ids=[wanted]), use_tqdm=False
    )[0].outputs[0]

    assert answer.token_ids == tokens[: tokens.index(wanted) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", wanted)


def test_special_tokens_are_shown_if_asked_for(llm: LLM) -> None:
    forced = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, allowed_token_ids=[1])

    hidden = llm.generate("a", forced, use_tqdm=False)[0].outputs[0]
    shown = llm.generate(
        "a",
        SamplingParams(
            temperature=0.0, max_tokens=1, ignore_eos=True, allowed_token_ids=[1], skip_special_tokens=False
        ),
        use_tqdm=False,
    )[0].outputs[0]

    assert (hidden.text, hidden.token_ids) == ("", [1])
    assert shown.text == "<|im_start|>"


def test_bad_words_never_appear(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)[0].outputs[0].text
    word = max(whole.split(), key=len)

    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, bad_words=[word])

    assert word not in llm.generate(PROMPTS[1], params, use_tqdm=False)[0].outputs[0].text


def test_a_prompt_is_cut_to_its_end_if_asked_for(llm: LLM) -> None:
    ids = list(range(10, 60))

    output = llm.generate(
        {"prompt_token_ids": ids}, SamplingParams(max_tokens=1, truncate_prompt_tokens=7), use_tqdm=False
    )[0]

    assert output.prompt_token_ids == ids[-7:]


def test_a_prompt_is_cut_to_what_fits_with_the_output_if_asked_for(llm: LLM) -> None:
    ids = [5 + i % 1000 for i in range(5000)]

    output = llm.generate(
        {"prompt_token_ids": ids},
        SamplingParams(max_tokens=3, ignore_eos=True, truncate_prompt_tokens=-1),
        use_tqdm=False,
    )[0]

    assert output.prompt_token_ids == ids[-(2048 - 3) :]
    assert len(output.outputs[0].token_ids) == 3


def test_a_conversation_goes_through_the_chat_template(llm: LLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    messages = [{"role": "user", "content": "Hello!"}]

    one = llm.chat(messages, GREEDY, use_tqdm=False)
    two = llm.chat([messages, messages], GREEDY, use_tqdm=False)

    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert one[0].prompt_token_ids == tokenizer(text, add_special_tokens=False).input_ids
    assert len(two) == 2
    assert two[1].outputs[0].token_ids == one[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (["fine", ""], "prompt 1: the prompt is empty"),
        (["fine", "fine", {"prompt_token_ids": [1024]}], "prompt 2: .* 0 to 1023"),
        ([{"prompt_token_ids": [-1]}], "prompt 0: .* 0 to 1023"),
        ([{"prompt_token_ids": [1] * 3000}], "prompt 0: this model.s maximum .* the prompt has 3000"),
        ([{"prompt_token_ids": ["1"]}], "prompt 0: prompt_token_ids must be a list of whole numbers"),
        ([{"prompt_token_ids": "12"}], "prompt 0: prompt_token_ids must be a list of whole numbers"),
        ([{"text": "a"}], r"prompt 0 has the keys \['text'\]"),
        ([1, 2, 3], "prompt 0 is 1"),
        (["\ud800"], "prompt 0 is no text"),
    ],
)
def test_a_bad_prompt_is_named_before_anything_runs(llm: LLM, prompts: list[object], says: str) -> None:
    before = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].text

    with pytest.raises(RequestRejected, match=says):
        llm.generate(prompts, GREEDY, use_tqdm=False)  # type: ignore[arg-type]

    again = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    assert [output.outputs[0].text for output in again] == [before]


def test_lists_that_do_not_fit_the_prompts_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestRejected, match="2 prompts, but 1 of sampling_params"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(RequestRejected, match="2 prompts, but 3 of priority"):
        llm.generate(["a", "b"], GREEDY, use_tqdm=False, priority=[1, 2, 3])


def test_an_interrupt_leaves_nothing_behind(llm: LLM) -> None:
    def interrupted() -> Iterator[None]:
        for number, _ in enumerate(llm.stream(PROMPTS, GREEDY)):
            yield
            if number == 7:
                raise KeyboardInterrupt

    expected = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    with pytest.raises(KeyboardInterrupt):
        list(interrupted())

    seen = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [o.outputs[0].text for o in seen] == [o.outputs[0].text for o in expected]


def test_without_a_tokenizer_ids_go_in_and_out(llm: LLM) -> None:
    bare = make(skip_tokenizer_init=True)
    ids = llm.get_tokenizer().encode(PROMPTS[0], add_special_tokens=True)

    output = bare.generate({"prompt_token_ids": ids}, GREEDY, use_tqdm=False)[0].outputs[0]

    assert output.token_ids == llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    assert output.text == ""
    for prompts, params in ((PROMPTS[0], GREEDY), ({"prompt_token_ids": ids}, SamplingParams(stop="a"))):
        with pytest.raises(RequestRejected, match="tokenizer"):
            bare.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
    with pytest.raises(RequestRejected, match="tokenizer"):
        bare.get_tokenizer()


def test_the_bar_counts_requests_and_tokens(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(PROMPTS, GREEDY)
    shown = capsys.readouterr().err

    llm.generate(PROMPTS, GREEDY, use_tqdm=False)

    assert "5/5" in shown
    assert "out" in shown
    assert capsys.readouterr().err == ""


def test_an_option_nobody_knows_is_a_type_error_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"max_num_sequences.*max_num_seqs"):
        make(max_num_sequences=4)


@pytest.mark.parametrize(
    ("options", "failure", "says"),
    [
        ({"dtype": "int3"}, InvalidInput, "dtype"),
        ({"model": "/nowhere"}, WeightsFailure, "no model at /nowhere"),
        ({"max_model_len": 100_000}, ConfigFailure, "2048"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(
    options: dict[str, object], failure: type[Exception], says: str
) -> None:
    with pytest.raises(failure, match=says):
        LLM(**{"model": "builtin://quire-tiny", "kv_cache_gib": None, **options})  # type: ignore[arg-type]


def test_a_model_of_text_makes_no_embeddings(llm: LLM) -> None:
    with pytest.raises(RequestRejected, match="embed"):
        llm.embed("a")


def test_an_embedding_model_makes_a_vector_for_each_prompt(tmp_path: Path) -> None:
    save_case("bert", tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", skip_tokenizer_init=True)
    prompts = [{"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [8]}]

    together = llm.embed(prompts)

    assert [output.prompt_token_ids for output in together] == [[5, 6, 7], [8]]
    for prompt, output in zip(prompts, together, strict=True):
        assert output.outputs.embedding == pytest.approx(llm.embed(prompt)[0].outputs.embedding, abs=1e-5)
    with pytest.raises(RequestRejected, match="input 1 is empty"):
        llm.embed([prompts[0], {"prompt_token_ids": []}])
    with pytest.raises(RequestRejected, match="use `embed`"):
        llm.generate(prompts, use_tqdm=False)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, quire_engine; quire_engine.SamplingParams(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert all(getattr(quire_engine, name) for name in quire_engine.__all__)
    with pytest.raises(AttributeError, match="Llm"):
        quire_engine.Llm  # noqa: B018


def test_stop_strings_are_looked_for_in_what_is_shown() -> None:
    """Also among the names of special tokens, if these are shown, and after a shorter one that came too early."""
    llm = LLM("builtin://quire-tiny", dtype="float32", kv_cache_gib=0.02)
    messages = [{"role": "user", "content": "What is an LLMDeployment?"}]
    greedy = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
    shown = llm.chat(messages, SamplingParams(**greedy, skip_special_tokens=False), use_tqdm=False)[0].outputs[0].text
    stop = shown[shown.index("<|im_end|>") - 3 :][:6]

    stopped = llm.chat(messages, SamplingParams(**greedy, skip_special_tokens=False, stop=stop), use_tqdm=False)[
        0
    ].outputs[0]
    early = llm.chat(
        messages, SamplingParams(**greedy, min_tokens=4, stop=["An", "no such long text"]), use_tqdm=False
    )[0].outputs[0]

    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.text == shown[: shown.index(stop)]
    assert early.text.startswith("An LLMDeployment is")


def test_two_streams_at_once_are_refused_and_the_first_goes_on() -> None:
    llm = LLM("builtin://quire-tiny", kv_cache_gib=0.02)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    stream = llm.stream(["Hello"], params)
    next(stream)

    with pytest.raises(RequestRejected, match="another stream of this LLM is open"):
        llm.generate("world", params, use_tqdm=False)

    *_, last = stream
    assert len(last.outputs[0].token_ids) == 8
    assert llm.generate("Hello", params, use_tqdm=False)[0].outputs[0].token_ids == last.outputs[0].token_ids
