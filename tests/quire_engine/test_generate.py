"""`quire generate`: an answer in the terminal."""

import fcntl
import os
import signal
import subprocess
import sys

import pytest

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.llm import LLM
from quire_engine.params import SamplingParams

MODEL = "builtin://quire-tiny"
PROMPT = "Once upon a time"
GREEDY = ["--temperature=0", "--max-tokens=12", "--dtype=float32", "--kv-cache-gib=0.02"]


def quire(*arguments: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "quire_api", "generate", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_answer_is_that_of_the_library_and_nothing_else_is_written() -> None:
    llm = LLM(MODEL, dtype="float32", kv_cache_gib=0.02)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    messages = [{"role": "user", "content": PROMPT}]

    answer = quire(MODEL, PROMPT, *GREEDY)
    piped = quire(MODEL, "-", *GREEDY, text=PROMPT)
    chat = quire(MODEL, PROMPT, "--chat", *GREEDY)

    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].text
    assert piped.stdout == answer.stdout
    assert chat.stdout == llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text


def test_text_comes_as_it_is_made_and_an_interrupt_ends_it() -> None:
    """The pipe holds less than the answer, which therefore waits in the middle."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    process = subprocess.Popen(
        [sys.executable, "-m", "quire_api", "generate", MODEL, PROMPT, "--min-tokens=1900", "--kv-cache-gib=0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    room = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 1)  # a page
    first = os.read(process.stdout.fileno(), 1)

    process.send_signal(signal.SIGINT)

    rest, errors = process.communicate(timeout=30)
    assert first
    assert len(rest) <= room
    assert process.returncode == 130
    assert errors == b""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], ConfigFailure.exit_code, "model"),
        ([MODEL], ConfigFailure.exit_code, "no prompt"),
        ([MODEL, PROMPT, "--temprature=1"], ConfigFailure.exit_code, "--temperature"),
        ([MODEL, PROMPT, "--temperature=-1"], ConfigFailure.exit_code, "between 0 and 100"),
        ([MODEL, PROMPT, "--top-k=x"], ConfigFailure.exit_code, "--top-k"),
        ([MODEL, PROMPT, "--stop", ""], ConfigFailure.exit_code, "empty"),
        ([MODEL, PROMPT, "--dtype=int3"], ConfigFailure.exit_code, "--dtype"),
        (["/nowhere", PROMPT], WeightsFailure.exit_code, "no model at /nowhere"),
        ([MODEL, "", "--kv-cache-gib=0.02"], ConfigFailure.exit_code, "empty"),
    ],
)
def test_mistakes_end_with_a_sentence_and_the_exit_code_of_their_kind(
    arguments: list[str], code: int, says: str
) -> None:
    ended = quire(*arguments)

    assert ended.returncode == code
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("quire generate: ")
    assert says in ended.stderr


def test_a_mistake_is_found_before_torch_is_imported() -> None:
    code = (
        "import sys; from quire_api.command import main; "
        f"main(['generate', '{MODEL}', 'a', '--top-p=7']); sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_reader_who_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "quire_api", "generate", MODEL, PROMPT, "--min-tokens=1900", "--kv-cache-gib=0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)

    process.stdout.close()

    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(30) == 1
    process.stderr.close()
