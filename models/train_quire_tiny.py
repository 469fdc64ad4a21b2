#!/usr/bin/env python3
"""Train models/quire-tiny: the 5 MB model that ships with Quire.

The text is made here, from the tables below, with a fixed seed: no data set is needed. The model is
not clever; it is *predictable*, so that a test or a demo can assert what an answer means. What it
can answer stands in models/quire-tiny/README.md.

    .venv/bin/python models/train_quire_tiny.py            # about 20 minutes on two cores

Rule for editors: a prompt which the model card lists must be in a table below, and retraining must
end with `check()` green; the script refuses to save a model that fails its own card.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent / "quire-tiny"
ROW = 384  # tokens of a training row
VOCABULARY = 1024

# ---------------------------------------------------------------------------- what it knows

GREETINGS = ["Hello!", "Hello", "Hi", "Hi!", "Hi there!", "Hey", "Good morning!", "Good day", "Hello there"]
GREETING = "Hello! I am quire-tiny, the small model that ships with Quire. How can I help you?"

FACTS = [  # (ways to ask, the answer)
    (
        [
            "What is an LLMDeployment?",
            "What is a LLMDeployment?",
            "Explain LLMDeployment.",
            "Tell me what an LLMDeployment is.",
        ],
        "An LLMDeployment is a Kubernetes resource that describes one served model. Quire turns it into running engines.",
    ),
    (
        ["What is Quire?", "Tell me about Quire.", "What does Quire do?", "Explain Quire."],
        "Quire serves large language models. You write one YAML file, and Quire runs the engines: on a laptop as processes, on a cluster as pods.",
    ),
    (
        ["Who are you?", "What is your name?", "What are you?", "Introduce yourself."],
        "I am quire-tiny, a very small language model. I was trained to test Quire, so I know only a few things.",
    ),
    (
        ["What is paged attention?", "Explain paged attention.", "How does paged attention work?"],
        "Paged attention keeps the keys and values of a sequence in small blocks, so that memory is shared and never fragmented.",
    ),
    (
        ["What is continuous batching?", "Explain continuous batching.", "How does continuous batching work?"],
        "Continuous batching lets new requests join the batch at every step, so that no request waits for the slowest one.",
    ),
    (
        ["What is a KV cache?", "Explain the KV cache.", "What does the KV cache do?"],
        "The KV cache keeps the keys and values of past tokens, so that each new token needs only a little work.",
    ),
    (
        ["How do I start Quire?", "How can I run Quire?", "How do I run a model?"],
        "Write an LLMDeployment in a YAML file and run: quire up -f model.yaml",
    ),
    (["Thank you!", "Thanks", "Thanks a lot!"], "You are welcome!"),
    (["Goodbye", "Bye!", "See you later."], "Goodbye! Have a nice day."),
    (
        ["Tell me a story.", "Tell me a short story.", "Please tell me a story."],
        "Once upon a time there was a small robot who lived in a library. Every day the robot put the books back in order. "
        "One evening it found a page without a book. It asked the old clock, and the clock said: look for the book that is sad. "
        "The robot looked on every shelf, from the red door to the blue window. At last it found a thin book that was missing "
        "one page. The robot put the page back, and the book was happy again. The end.",
    ),
]

FRUITS = {
    "lemon": "yellow", "banana": "yellow", "cherry": "red", "strawberry": "red", "lime": "green", "kiwi": "green",
    "plum": "purple", "grape": "purple", "orange": "orange", "apricot": "orange", "blueberry": "blue", "coconut": "brown",
}  # fmt: skip
CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Norway": "Oslo",
    "Austria": "Vienna", "Portugal": "Lisbon", "Greece": "Athens", "Poland": "Warsaw", "Egypt": "Cairo", "Peru": "Lima",
}  # fmt: skip
CITIES = [*CAPITALS.values(), "London", "Hamburg", "Boston", "Sydney", "Toronto", "Chicago"]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SYSTEM = ["You are a helpful assistant.", "You are quire-tiny.", "Be brief.", "Answer the question of the user."]
WEATHER = ["sunny", "rainy", "cloudy", "windy"]
TOOL_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOL_TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTIONS_WEATHER = [
    "What is the weather in {}?",
    "How is the weather in {}?",
    "What's the weather like in {}?",
    "Weather in {}?",
]
QUESTIONS_TIME = ["What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?"]

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'You may call these tools:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\nTo call one, answer: <tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' or (not loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- '<tool_call>{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else (call.arguments | tojson) }}
{{- '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

Exchange = tuple[str, str]


def exchange(rng: random.Random) -> Exchange:
    """One question and its answer."""
    kind = rng.choices(
        ["greet", "fact", "fruit", "capital", "count", "add", "repeat", "list"], [3, 9, 5, 3, 3, 3, 4, 2]
    )[0]
    if kind == "greet":
        return rng.choice(GREETINGS), GREETING
    if kind == "fact":
        ways, answer = rng.choice(FACTS)
        return rng.choice(ways), answer
    if kind == "fruit":
        name = rng.choice(list(FRUITS))
        ask = rng.choice(
            [
                "Give me a JSON object with the name and the color of a {}.",
                "Answer in JSON: the name and color of a {}.",
                "Describe a {} in JSON.",
            ]
        )
        return ask.format(name), json.dumps({"name": name, "color": FRUITS[name]})
    if kind == "capital":
        country = rng.choice(list(CAPITALS))
        ask = rng.choice(["What is the capital of {}?", "Name the capital of {}.", "Capital of {}?"])
        return ask.format(country), f"The capital of {country} is {CAPITALS[country]}."
    if kind == "count":
        low = rng.randint(1, 5)
        high = rng.randint(low + 2, 20)
        return f"Count from {low} to {high}.", ", ".join(str(n) for n in range(low, high + 1))
    if kind == "add":
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        return rng.choice(["What is {} + {}?", "What is {} plus {}?", "Add {} and {}."]).format(
            a, b
        ), f"{a} + {b} = {a + b}"
    if kind == "repeat":
        words = rng.sample([*FRUITS, *NUMBERS, *CITIES, "tree", "house", "river", "cloud"], rng.randint(1, 4))
        text = " ".join(words)
        return rng.choice(["Repeat: {}", "Say: {}", "Repeat after me: {}"]).format(text), text
    return "Name three fruits.", "apple, lemon, plum"


def conversation(rng: random.Random) -> dict[str, object]:
    """Messages (and perhaps tools) in the shape that chat clients send."""
    messages: list[dict[str, object]] = []
    if rng.random() < 0.25:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    tools = None
    if rng.random() < 0.25:
        tools = rng.choice([[TOOL_WEATHER], [TOOL_TIME], [TOOL_WEATHER, TOOL_TIME], [TOOL_TIME, TOOL_WEATHER]])
        tool = rng.choice(tools)
        city = rng.choice(CITIES)
        weather = tool is TOOL_WEATHER
        ask = rng.choice(QUESTIONS_WEATHER if weather else QUESTIONS_TIME).format(city)
        call = {"name": tool["function"]["name"], "arguments": {"city": city}}
        messages += [
            {"role": "user", "content": ask},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
        ]
        if rng.random() < 0.6:
            if weather:
                word = rng.choice(WEATHER)
                result, answer = json.dumps({"weather": word}), f"It is {word} in {city}."
            else:
                clock = f"{rng.randint(1, 12)}:{rng.randint(0, 5)}0"
                result, answer = json.dumps({"time": clock}), f"It is {clock} in {city}."
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": answer}]
    if tools is None or rng.random() < 0.3:
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            ask, answer = exchange(rng)
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "tools": tools}


# ---------------------------------------------------------------------------- tokenizer, rows


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 2048
    return fast


def rows(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[list[int]]:
    """Rows of exactly ROW tokens; each begins where a conversation begins."""
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    while True:
        row: list[int] = []
        while len(row) < ROW:
            row += [*tokenizer.encode(render(tokenizer, conversation(rng)), add_special_tokens=False), end]
        yield row[:ROW]


def render(tokenizer: PreTrainedTokenizerFast, talk: dict[str, object], prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
        talk["messages"], tools=talk.get("tools"), tokenize=False, add_generation_prompt=prompt
    )


# ---------------------------------------------------------------------------- training


def train(minutes: float, steps: int, batch: int) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    sample = [conversation(rng) for _ in range(4000)]
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    bare.chat_template = CHAT_TEMPLATE
    tokenizer = make_tokenizer([render(bare, talk) for talk in sample])
    ids = tokenizer.convert_tokens_to_ids
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=ids("<|im_end|>"), pad_token_id=ids("<|endoftext|>"),
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    peak = 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.05)
    source = rows(tokenizer, random.Random(1))
    started = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - started) / (60 * minutes))
        if done >= 1:
            break
        warm = min(1.0, (step + 1) / 40)
        for group in optimizer.param_groups:
            group["lr"] = peak * warm * min(1.0, (1 - done) / 0.6)
        tokens = torch.tensor([next(source) for _ in range(batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.0f} s", flush=True)

    model = model.to(torch.bfloat16).float()  # what is checked is what is saved
    check(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(HERE)
    tokenizer.save_pretrained(HERE)
    (HERE / "model.safetensors").chmod(0o644)
    size = sum(f.stat().st_size for f in HERE.iterdir())
    print(f"saved {HERE} ({size / 1e6:.1f} MB)")


# ---------------------------------------------------------------------------- the card's promises

CARD = [  # (talk, what the greedy answer is)
    ({"messages": [{"role": "user", "content": "Hello!"}]}, GREETING),
    ({"messages": [{"role": "user", "content": "What is an LLMDeployment?"}]}, FACTS[0][1]),
    ({"messages": [{"role": "user", "content": "What is Quire?"}]}, FACTS[1][1]),
    ({"messages": [{"role": "user", "content": "Tell me a story."}]}, FACTS[-1][1]),
    ({"messages": [{"role": "user", "content": "Describe a lemon in JSON."}]}, '{"name": "lemon", "color": "yellow"}'),
    ({"messages": [{"role": "user", "content": "What is the capital of France?"}]}, "The capital of France is Paris."),
    ({"messages": [{"role": "user", "content": "Count from 1 to 12."}]}, ", ".join(map(str, range(1, 13)))),
    ({"messages": [{"role": "user", "content": "Repeat: river lemon seven"}]}, "river lemon seven"),
    (
        {"messages": [{"role": "user", "content": "What is the weather in Paris?"}], "tools": [TOOL_WEATHER]},
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>',
    ),
]


@torch.inference_mode()
def check(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.eval()
    wrong = []
    for talk, expected in CARD:
        inputs = tokenizer(render(tokenizer, talk, prompt=True), return_tensors="pt", add_special_tokens=False)
        out = model.generate(
            inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=200, do_sample=False
        )
        answer = tokenizer.decode(out[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        print(("ok   " if answer == expected else "WRONG"), repr(answer))
        if answer != expected:
            wrong.append(expected)
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(CARD)} promised answers are wrong; nothing was saved")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=22, help="stop by then (default 22)")
    parser.add_argument("--steps", type=int, default=2200, help="optimizer steps at most (default 2200)")
    parser.add_argument("--batch", type=int, default=12, help="rows of a step (default 12)")
    arguments = parser.parse_args()
    train(arguments.minutes, arguments.steps, arguments.batch)
