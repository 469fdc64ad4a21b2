"""`quire bench`: its pure parts, and the command against a real server and against one that misbehaves."""

import http.server
import json
import random
import socket
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest
from fakes.serving import Running, free_port, run_quire, serving
from hypothesis import given
from hypothesis import strategies as st

from quire_api.errors import InvalidInput
from quire_engine.bench.arrivals import arrivals
from quire_engine.bench.client import Address
from quire_engine.bench.plot import ticks
from quire_engine.bench.reading import Reading
from quire_engine.bench.statistics import Failure, Outcome, percentile, summarise
from quire_engine.bench.workload import Ids, Words, made_up, sharegpt, with_shared_prefixes

pytestmark = pytest.mark.xdist_group("bench")  # one server for all of these

COUNTS = st.integers(1, 50)
SEEDS = st.integers(0, 2**32)


# ------------------------------------------------------------------ workload and arrivals


@given(COUNTS, st.integers(1, 200), st.integers(1, 200), st.floats(0, 0.99), SEEDS)
def test_made_up_prompts_keep_their_lengths_and_come_again_with_their_seed(
    count: int, read: int, written: int, ratio: float, seed: int
) -> None:
    prompts = made_up(count, Ids(1000), read, written, ratio, random.Random(seed))

    assert prompts == made_up(count, Ids(1000), read, written, ratio, random.Random(seed))
    assert len(prompts) == count
    for prompt in prompts:
        assert 1 <= len(prompt.content) <= 2 * read
        assert abs(len(prompt.content) - read) <= ratio * read + 1
        assert abs(prompt.output_tokens - written) <= ratio * written + 1
        assert all(isinstance(token, int) and 250 <= token < 1000 for token in prompt.content)


def test_words_are_as_many_as_their_tokens_say() -> None:
    prompt = made_up(1, Words(tokens_per_word=2.0), 40, 1, 0.0, random.Random(0))[0]

    assert isinstance(prompt.content, str)
    assert len(prompt.content.split()) == 20


@given(COUNTS, st.integers(1, 8), SEEDS)
def test_shared_prefixes_are_as_many_as_asked_and_every_tail_is_new(count: int, prefixes: int, seed: int) -> None:
    prompts = with_shared_prefixes(count, Ids(100_000), prefixes, 6, 12, 5, random.Random(seed))

    assert len({prompt.content[:6] for prompt in prompts}) == min(count, prefixes)
    assert len({prompt.content[6:] for prompt in prompts}) == count
    assert {len(prompt.content) for prompt in prompts} == {18}


def conversation(question: str, answer: str, asker: str = "human") -> dict[str, Any]:
    return {"conversations": [{"from": asker, "value": question}, {"from": "gpt", "value": answer}]}


def test_sharegpt_takes_first_questions_of_fitting_length_only() -> None:
    fit = conversation("what is the colour of the sky", "blue in the day and black at night")
    data = [
        fit,
        conversation("hi", "one two three four"),
        conversation("a b c d e", "x"),
        conversation("a " * 1025, "one two three four"),
        conversation("a b c d e", "one two three four", asker="gpt"),
        {"conversations": []},
        {"id": "nothing"},
        7,
    ]

    prompts = sharegpt(data, 1, lambda text: len(text.split()), None, random.Random(0))

    assert [(prompt.content, prompt.output_tokens) for prompt in prompts] == [("what is the colour of the sky", 8)]
    with pytest.raises(InvalidInput, match=r"1 of 8 conversations .* 2 are needed"):
        sharegpt(data, 2, lambda text: len(text.split()), None, random.Random(0))


def test_a_file_that_is_no_list_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a ShareGPT file is a list of conversations, not dict"):
        sharegpt({}, 1, len, None, random.Random(0))


@given(st.integers(2, 200), st.floats(0.1, 1000), st.floats(0.05, 50), SEEDS)
def test_arrivals_rise_and_bring_the_load_that_was_asked_for(
    count: int, rate: float, burstiness: float, seed: int
) -> None:
    times = arrivals(count, rate, burstiness, seed)

    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == pytest.approx((count - 1) / rate)
    assert times == arrivals(count, rate, burstiness, seed)


def test_an_infinite_rate_sends_all_at_once() -> None:
    assert arrivals(3, float("inf"), 1.0, 0) == [0, 0, 0]


def test_less_burstiness_makes_more_uneven_gaps() -> None:
    def unevenness(burstiness: float) -> float:
        times = arrivals(2000, 1.0, burstiness, 1)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        return sum((gap - 1) ** 2 for gap in gaps) / len(gaps)

    assert unevenness(0.25) > 2 * unevenness(1.0) > 4 * unevenness(8.0)


# ------------------------------------------------------------------ what an answer's events say


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text(said: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": said, "finish_reason": finish}], usage=None)


def delta(finish: str | None = None, **said: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": said, "finish_reason": finish}])


USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10})
DONE = b"data: [DONE]\n\n"


def read(*pieces: bytes) -> Outcome | Failure:
    """A piece a second."""
    reading = Reading(0.0)
    for second, piece in enumerate(pieces, 1):
        reading.feed(piece, float(second))
    return reading.outcome()


def test_times_are_those_of_the_first_and_the_last_text() -> None:
    outcome = read(text("a"), text("b"), text("c", "length"), USAGE, DONE)

    assert isinstance(outcome, Outcome)
    assert (outcome.ttft_s, outcome.e2e_s, list(outcome.gaps_s), outcome.tpot_s) == (1, 3, [1, 1], 1)
    assert (outcome.input_tokens, outcome.output_tokens) == (7, 3)


def test_the_role_is_no_token_and_neither_is_a_reason_alone() -> None:
    outcome = read(
        delta(role="assistant", content=""), delta(content="a"), delta(content="b"), delta("stop"), USAGE, DONE
    )

    assert isinstance(outcome, Outcome)
    assert (outcome.ttft_s, outcome.e2e_s, list(outcome.gaps_s)) == (2, 3, [1])


def test_a_token_that_shows_no_text_is_a_token() -> None:
    outcome = read(delta(role="assistant", content=""), delta(), delta(content="b"), delta("length"), USAGE, DONE)

    assert isinstance(outcome, Outcome)
    assert (outcome.ttft_s, list(outcome.gaps_s)) == (2, [1])


STREAM = b": a comment\r\n\r\n" + text("é").replace(b"\n", b"\r\n") + text("b", "stop") + USAGE + DONE


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_cut_of_the_bytes_gives_the_same_tokens(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reading = Reading(0.0)

    for begin, end in pairwise(places):
        reading.feed(STREAM[begin:end], 1.0)
    outcome = reading.outcome()

    assert isinstance(outcome, Outcome)
    assert (outcome.input_tokens, outcome.output_tokens, len(outcome.gaps_s)) == (7, 3, 1)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ((text("a"), USAGE), "ended before [DONE]"),
        ((text("a"), DONE), "no usage"),
        ((USAGE, DONE), "no token"),
        ((text("a"), event(error={"message": "the engine is gone"}), DONE), "the engine is gone"),
        ((b"data: {nonsense\n\n", DONE), "none of OpenAI's: {nonsense"),
        ((b"data: [1]\n\n", DONE), "none of OpenAI's: [1]"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said(pieces: tuple[bytes, ...], reason: str) -> None:
    outcome = read(*pieces)

    assert isinstance(outcome, Failure)
    assert reason in outcome.reason


# ------------------------------------------------------------------ statistics


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100), st.floats(0, 100))
def test_a_percentile_lies_between_its_neighbours(values: list[float], percent: float) -> None:
    ordered = sorted(values)

    found = percentile(ordered, percent)

    slack = 1e-9 * max(1.0, ordered[-1])
    assert sum(value < found - slack for value in ordered) <= len(ordered) * percent / 100 + 1
    assert sum(value > found + slack for value in ordered) <= len(ordered) * (1 - percent / 100) + 1


def test_percentiles_are_numpys() -> None:
    assert [percentile([1.0, 2.0, 4.0, 8.0], percent) for percent in (0, 50, 90, 100)] == pytest.approx([1, 3, 6.8, 8])


def outcome(ttft_s: float, e2e_s: float, tokens: int) -> Outcome:
    return Outcome(ttft_s=ttft_s, e2e_s=e2e_s, gaps_s=[], input_tokens=10, output_tokens=tokens)


def test_failures_count_as_failures_and_nowhere_else() -> None:
    summary = summarise([outcome(0.1, 0.5, 5), Failure("a"), Failure("b"), Failure("b")], duration_s=2.0)

    assert (summary.completed, summary.failed, summary.reasons) == (1, 3, [("b", 2), ("a", 1)])
    assert (summary.requests_per_s, summary.output_tokens_per_s, summary.total_tokens_per_s) == (0.5, 2.5, 7.5)
    assert summary.spreads_ms["tpot"].mean == pytest.approx(100)
    assert "itl" not in summary.spreads_ms
    assert summary.good is None


def test_goodput_counts_requests_that_keep_every_goal() -> None:
    outcomes = [outcome(0.1, 0.5, 5), outcome(0.3, 0.7, 5), outcome(0.1, 4.1, 5), outcome(0.1, 0.1, 1)]

    summary = summarise(outcomes, 2.0, goals_ms={"ttft": 200, "tpot": 500})

    assert (summary.good, summary.good_per_s) == (2, 1.0)


@given(st.floats(1e-6, 1e9))
def test_ticks_reach_from_nothing_to_the_most_in_few_even_steps(most: float) -> None:
    found = ticks(most)

    assert found[0] == 0
    assert found[-1] >= most * (1 - 1e-6)
    assert 3 <= len(found) <= 8


# ------------------------------------------------------------------ the command, against a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ["--kv-cache-gib=0.05", "--max-num-seqs=16"]
    with serving(tmp_path_factory.mktemp("bench"), "serve", "builtin://quire-tiny", *options) as running:
        yield running


def bench(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return run_quire("bench", "serve", f"--base-url={url}", *flags)


SHORT = ("--num-prompts=12", "--random-input-len=20", "--random-output-len=8", "--ignore-eos")


def test_tokens_are_those_of_the_servers_usage(server: Running, tmp_path: Path) -> None:
    done = bench(server.url, *SHORT, "--max-concurrency=4", f"--save-result={tmp_path}/result.json")

    assert done.returncode == 0, done.stderr
    assert "12 ok, 0 failed" in done.stdout
    assert done.stderr == ""  # no bar where there is no terminal
    result = json.loads((tmp_path / "result.json").read_text())
    (run,) = result["runs"]
    assert result["model_id"] == "quire-tiny"
    assert (run["completed"], run["total_input_tokens"], run["total_output_tokens"]) == (12, 240, 96)
    assert 0 < run["median_ttft_ms"] < run["median_e2el_ms"] <= run["p99_e2el_ms"]


def test_chat_at_several_rates_makes_a_plot_of_one_point_each(server: Running, tmp_path: Path) -> None:
    done = bench(
        server.url, *SHORT, "--backend=openai-chat", "--request-rate=40,80,inf", "--goodput", "ttft:60000",
        "e2el:60000", "--percentile-metrics=ttft,e2el", "--metric-percentiles=90", f"--plot={tmp_path}/plot.svg",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("12 ok, 0 failed") == 3
    assert done.stdout.count("12 requests\n") == 3  # of goodput
    assert "TPOT" not in done.stdout
    drawn = ElementTree.parse(tmp_path / "plot.svg")
    assert len(drawn.findall(".//{*}polyline")) == 4
    assert len(drawn.findall(".//{*}circle")) == 12


def test_sharegpt_questions_reach_the_server(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([conversation(f"What is the answer to question {n}?", "I do not know it. " * 3) for n in range(5)]))  # fmt: skip

    done = bench(
        server.url, "--dataset-name=sharegpt", f"--dataset-path={path}", "--num-prompts=4", "--backend=openai-chat",
        "--tokenizer=builtin://quire-tiny",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "4 ok, 0 failed" in done.stdout


def test_shared_prefixes_are_found_in_the_prefix_cache(server: Running) -> None:
    def hits() -> float:
        page = server.request("GET", "/metrics")[2].decode()
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:prefix_cache_hits"))

    before = hits()
    assert bench(server.url, *SHORT, "--seed=5").returncode == 0
    random_hits = hits() - before
    done = bench(
        server.url, "--dataset-name=shared-prefix", "--num-prompts=12", "--prefix-repetition-num-prefixes=2",
        "--prefix-repetition-prefix-len=64", "--prefix-repetition-suffix-len=8", "--prefix-repetition-output-len=4",
        "--max-concurrency=1",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert random_hits == 0
    assert hits() - before >= 10 * 64


# ------------------------------------------------------------------ ... and against one that misbehaves


class Misbehaving(http.server.BaseHTTPRequestHandler):
    """Does with the n-th request what stands at place n of `ways`, round and round."""

    protocol_version = "HTTP/1.1"
    ways: ClassVar[list[str]] = []
    asked = 0
    lock = threading.Lock()
    over = threading.Event()

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "bad"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.lock:
            way = self.ways[Misbehaving.asked % len(self.ways)]
            Misbehaving.asked += 1
        if way == "500":
            return self._send(500, b'{"error": {"message": "the engine is on fire"}}')
        if way == "stay":
            return self._send(500, b"", "keep-alive")
        if way == "gone":
            self.close_connection = True
            return None
        if way == "slow":
            self.over.wait()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(text("a"))
        if way != "cut":
            self.wfile.write(text("b", "stop") + USAGE + DONE)
        return None

    def _send(self, status: int, body: bytes, connection: str = "close") -> None:
        self.send_response(status)
        self.send_header("connection", connection)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            pass  # a client that had enough


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving) as made:
        monkeypatch.setattr(Misbehaving, "asked", 0)
        Misbehaving.over.clear()
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        Misbehaving.over.set()
        made.shutdown()


def test_every_failure_is_counted_by_its_reason(misbehaving: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Misbehaving, "ways", ["well", "500", "cut", "slow", "gone"])

    done = bench(misbehaving, "--num-prompts=10", "--num-warmups=0", "--max-concurrency=5", "--request-timeout=2")

    assert done.returncode == 0, done.stderr
    assert "2 ok, 8 failed" in done.stdout
    assert "2 × HTTP 500: the engine is on fire" in done.stdout
    assert "2 × the answer was cut: its stream ended before [DONE]" in done.stdout
    assert "2 × no end of the answer within 2 s" in done.stdout
    assert "2 × the connection failed: closed without an answer" in done.stdout
    assert "7.0 in, 3.0 out" in done.stdout


def test_a_connection_that_was_closed_while_it_waited_is_replaced(
    misbehaving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Misbehaving, "ways", ["stay", "gone", "well"])

    done = bench(misbehaving, "--num-prompts=2", "--num-warmups=0", "--max-concurrency=1")

    assert "1 ok, 1 failed" in done.stdout
    assert Misbehaving.asked == 3


def test_the_command_fails_when_every_request_did(misbehaving: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Misbehaving, "ways", ["500"])

    done = bench(misbehaving, "--num-prompts=3", "--plot=/dev/null")

    assert done.returncode == 1
    assert "0 ok, 3 failed" in done.stdout
    assert "while warming up: HTTP 500" in done.stderr


def test_no_server_is_one_sentence() -> None:
    done = bench(f"http://127.0.0.1:{free_port()}", *SHORT)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "/v1/models" in done.stderr


def test_a_server_that_speaks_no_http_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            link, _ = listener.accept()
            with link:
                link.recv(1000)
                link.sendall(b"220 mail.example ready\r\n")

        threading.Thread(target=answer, daemon=True).start()
        done = bench(f"http://127.0.0.1:{listener.getsockname()[1]}", *SHORT)

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "mistake"),
    [
        (("--num-prompts=0",), "--num-prompts: 0 is no whole number, 1 or more"),
        (("--request-rate=1,x",), "--request-rate: 1,x is no rate"),
        (("--goodput", "itl:3"), "--goodput: itl:3 is no goal"),
        (("--percentile-metrics=ttft,speed",), "--percentile-metrics: ttft,speed is no list of ttft, tpot"),
        (("--metric-percentiles=101",), "--metric-percentiles: 101 is no list of percentiles"),
        (("--extra-body=[]",), "--extra-body: [] is no JSON object"),
        (("--header", "a"), "--header: a is no header"),
        (("--base-url=ftp://there",), "--base-url: ftp://there is no address"),
        (("--dataset-name=sharegpt",), "needs --dataset-path FILE"),
        (("--dataset-path=a.json",), "random reads no file"),
        (("--dataset-name=sharegpt", "--dataset-path=/nowhere.json"), "/nowhere.json cannot be read"),
        (("--tokenizer=/nowhere",), "--tokenizer: no model at /nowhere"),
        (("--plot=/nowhere/plot.svg",), "there is no folder /nowhere"),
        (("--ignore-eoss",), 'did you mean "--ignore-eos"?'),
    ],
)
def test_a_wrong_flag_is_named_before_anything_is_asked(
    flags: tuple[str, ...], mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from quire_api.command import main

    code = main(["bench", "serve", *flags])

    assert code == 2
    assert mistake in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "shown", "authority"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://host/openai/", "https://host:443/openai", "host:443"),
        ("http://[::1]:80", "http://[::1]:80", "[::1]:80"),
    ],
)
def test_an_address_is_read_as_it_is_written(url: str, shown: str, authority: str) -> None:
    address = Address.of(url)

    assert (str(address), address.authority) == (shown, authority)


# ------------------------------------------------------------------ in this process


ENGINE = ("--model=builtin://quire-tiny", "--kv-cache-gib=0.05")


def test_throughput_generates_every_token_that_was_asked_for(tmp_path: Path) -> None:
    done = run_quire("bench", "throughput", *ENGINE, *SHORT[:3], f"--output-json={tmp_path}/result.json")

    assert done.returncode == 0, done.stderr
    assert "output tokens/s" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["num_requests"], result["total_input_tokens"], result["total_output_tokens"]) == (12, 240, 96)


def test_latency_repeats_one_batch(tmp_path: Path) -> None:
    done = run_quire(
        "bench", "latency", *ENGINE, "--batch-size=2", "--input-len=8", "--output-len=4", "--num-iters=3",
        "--num-iters-warmup=1", f"--output-json={tmp_path}/result.json",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["latencies"]) == 3
    assert result["percentiles"]["10"] <= result["percentiles"]["99"]


def test_a_prompt_that_the_model_cannot_take_is_one_sentence() -> None:
    done = run_quire("bench", "throughput", *ENGINE, "--num-prompts=1", "--vocab-size=100000")

    assert done.returncode == 2
    assert "not in the vocabulary, whose ids are 0 to 1023" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["throughput", "latency"])
def test_a_result_that_cannot_be_written_is_said_before_the_model_is_loaded(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from quire_api.command import main

    code = main(["bench", command, "--model=/nowhere", "--output-json=/nowhere/result.json"])

    assert code == 2
    assert "--output-json: there is no folder /nowhere" in capsys.readouterr().err
