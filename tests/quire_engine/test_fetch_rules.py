"""The pure parts of fetching: sources, names on disk, the choice of files, retries, ranges, the lock's judgement."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quire_api.fetching import FETCH_OUTCOMES, FetchReason, fetch_reason_of
from quire_api.footprint import ModelShape
from quire_engine.fetch.arguments import parse_arguments
from quire_engine.fetch.choose import Choice, choose
from quire_engine.fetch.errors import ModelNotFound, WeightsCorrupt, shown
from quire_engine.fetch.gc import Candidate, victims
from quire_engine.fetch.layout import Place, escaped, model_folder, source_of
from quire_engine.fetch.listing import RemoteFile, Target, check_name
from quire_engine.fetch.lock import Lock, Watch
from quire_engine.fetch.machine import Process
from quire_engine.fetch.manifest import parse_manifest
from quire_engine.fetch.ranges import Ranges
from quire_engine.fetch.retry import Policy, pause_s, retry_after_s
from quire_engine.fetch.source import HubSource, LocalSource, S3Source, WebSource, parse_source
from quire_engine.fetch.summary import LARGEST, summary_line
from quire_engine.locate import locate_model


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://org/model", HubSource(repo="org/model")),
        ("hf://org/model@refs/pr/3", HubSource(repo="org/model", revision="refs/pr/3")),
        ("org/model@v1.0", HubSource(repo="org/model", revision="v1.0")),
        ("hf://gpt2", HubSource(repo="gpt2")),
        ("s3://bucket/a/b/", S3Source(bucket="bucket", prefix="a/b")),
        ("https://host:8443/m/manifest.json", WebSource(url="https://host:8443/m/manifest.json")),
        ("file:///models/a", LocalSource(scheme="file", path="/models/a")),
        ("/models/a", LocalSource(scheme="file", path="/models/a")),
        ("pvc://claim/a/b", LocalSource(scheme="pvc", path="claim/a/b")),
        ("builtin://quire-tiny", LocalSource(scheme="builtin", path="quire-tiny")),
    ],
)
def test_a_source_is_read_as_it_is_written(text: str, source: object) -> None:
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gs://bucket/x", "gs:// is not supported yet; copy it"),
        ("oci://registry/x", "oci:// is not supported yet; unpack"),
        ("hf://org/../x", "no model of the hub"),
        ("hf://org/model@../../x", "no model of the hub"),
        ("ftp://x/y", "known are hf://"),
        ("https://host/model", "must end with /manifest.json"),
        ("https://user:password@host/manifest.json", "leave it out"),
        ("pvc://claim/../../etc", "is no source"),
        ("s3://x", "no name of a bucket"),
        ("", "the source is empty"),
        ("~nobody-of-this-name/model", "no such home"),
        ("https://host:port/manifest.json", "no web address"),
        ("https://[::1/manifest.json", "no web address"),
        ("https://[host]/manifest.json", "no web address"),
    ],
)
def test_what_is_no_source_is_refused_with_what_is(text: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says) as failure:
        parse_source(text)

    assert "password" not in str(failure.value)


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_on_disk_stay_apart_and_below_their_folder(one: str, other: str) -> None:
    """No part of a source's name is another's on disk, leaves its folder, or looks like a mark of ours."""
    assume("\ud800" not in one + other)
    try:
        (one + other).encode()
    except UnicodeEncodeError:
        return

    names = escaped(one), escaped(other)

    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith(".")
        assert len(name) < 200


@pytest.mark.parametrize(
    "source", [HubSource(repo="org/model", revision="a" * 40), S3Source(bucket="bucket", prefix="a/.b/c d"),
               WebSource(url="https://host:8443/m/n/manifest.json")]
)  # fmt: skip
def test_the_source_of_a_folder_is_read_off_its_path(source: HubSource | S3Source | WebSource) -> None:
    """The command that mends a folder can be given without any file in it."""
    place = Place(model=model_folder(Path("/store"), source), name="a" * 40)

    assert source_of(place.final) == (str(source), Path("/store"))
    assert source_of(place.temporary(3)) == (str(source), Path("/store"))
    assert source_of(Path("/models/llama")) is None


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../b", "a//b", "a\nb", "a\\b", "x\x00", "", "a/" + "b" * 300]
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(WeightsCorrupt, match="must not be written"):
        check_name(name)


def _files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(path=name, size=1, target=lambda: Target(url="http://x")) for name in names]


TEXTS = ["config.json", "tokenizer.json", "chat_template.jinja"]


@pytest.mark.parametrize(
    ("there", "left_out"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "model.gguf", "flax_model.msgpack", ".gitattributes", "modeling_x.py"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
         ["consolidated.safetensors", "model.safetensors", "original/consolidated.00.pth", "original/params.json",
          "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"]),
        (["model.safetensors"], ["model.fp16.safetensors", "onnx/model.onnx", "checkpoint-5/model.safetensors", "READY.json"]),
        (["adapter_model.safetensors", "adapter_config.json"], ["adapter_model.bin", "training_args.bin"]),
        (["odd-name.safetensors", "LICENSE", "README.md", "1_Pooling/config.json"], ["picture.png", "manifest.json"]),
    ],
)  # fmt: skip
def test_one_copy_of_the_weights_is_chosen_and_all_that_reads_text(there: list[str], left_out: list[str]) -> None:
    chosen = choose(_files(*there, *left_out, *TEXTS), Choice(), "hf://x/y")

    assert {file.path for file in chosen} == {*there, *TEXTS}


def test_pickle_is_refused_unless_asked_for() -> None:
    files = _files("pytorch_model.bin", "config.json")

    with pytest.raises(ModelNotFound, match="only as pickle"):
        choose(files, Choice(), "hf://x/y")

    assert len(choose(files, Choice(allow_pickle=True), "hf://x/y")) == 2


def test_patterns_choose_and_the_tokenizer_comes_along() -> None:
    files = _files("a.gguf", "b.gguf", "tokenizer.json", "notes.md", "deep/tokenizer.json")

    chosen = choose(files, Choice(include=("*.gguf",), exclude=("b.*",)), "hf://x/y")

    assert [file.path for file in chosen] == ["a.gguf", "tokenizer.json"]


def test_the_only_gguf_file_is_the_weights() -> None:
    files = _files("model-Q4_K_M.gguf", "pytorch_model.bin", "README.md", "config.json")

    chosen = choose(files, Choice(), "hf://x/y")

    assert [file.path for file in chosen] == ["README.md", "config.json", "model-Q4_K_M.gguf"]


def test_of_several_gguf_files_one_has_to_be_chosen() -> None:
    files = _files("m-Q4_K_M.gguf", "m-Q8_0.gguf", "tokenizer.json")

    with pytest.raises(
        ModelNotFound, match=r"2 GGUF files, .* choose it with --include, as in --include 'm-Q4_K_M.gguf'"
    ):
        choose(files, Choice(), "hf://x/y")

    chosen = choose(files, Choice(include=("*Q8_0.gguf",)), "hf://x/y")
    assert [file.path for file in chosen] == ["m-Q8_0.gguf", "tokenizer.json"]


def test_a_folder_that_is_left_out_comes_when_a_pattern_names_it() -> None:
    files = _files("config.json", "original/model.safetensors", "model.safetensors")

    chosen = [choose(files, Choice(include=(p,)), "hf://x/y") for p in ("original/*", "*.safetensors")]

    assert [file.path for file in chosen[0]] == ["config.json", "original/model.safetensors"]
    assert [file.path for file in chosen[1]] == ["config.json", "model.safetensors"]


def test_a_manifest_without_a_bottom_is_refused() -> None:
    with pytest.raises(WeightsCorrupt, match="is no JSON"):
        parse_manifest(b"[" * 200_000, "it")


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
def test_a_summary_is_short_in_bytes_whatever_its_source(letter: str) -> None:
    line = summary_line(f"https://host/{letter * 3000}/manifest.json", "a" * 40, [1], {"architectures": [letter * 99]})

    assert len(line.encode()) <= LARGEST
    assert json.loads(line)["source"].startswith(f"https://host/{letter}")


def test_flags_may_stand_before_the_store() -> None:
    _, told = parse_arguments(["hf://a/b", "--exclude", "x", "/store", "--quiet"])

    assert (told.source, told.store, told.exclude) == ("hf://a/b", "/store", ["x"])


def test_different_choices_have_different_folders() -> None:
    marks = [Choice().mark, Choice(include=("a",)).mark, Choice(exclude=("a",)).mark, Choice(allow_pickle=True).mark]

    assert marks[0] == ""
    assert len(set(marks)) == 4


@given(st.integers(1, 7), st.floats(0, 0.999), st.none() | st.floats(0, 300))
def test_a_retry_waits_as_long_as_the_server_asks_and_spreads(attempt: int, chance: float, asked: float | None) -> None:
    pause = pause_s(attempt=attempt, status=429, retry_after=asked, chance=chance, policy=Policy())

    assert pause is not None
    assert pause >= (asked or 0)
    assert pause <= (asked or 0) + 30


@pytest.mark.parametrize(
    ("attempt", "status", "asked"), [(8, 503, None), (1, 404, None), (1, 403, None), (1, 429, 301.0)]
)
def test_what_will_not_change_is_not_tried_again(attempt: int, status: int, asked: float | None) -> None:
    assert pause_s(attempt=attempt, status=status, retry_after=asked, chance=0.5, policy=Policy()) is None


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("12", 0) == 12
    assert retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 10) == 50
    assert retry_after_s("soon", 0) is None


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))), st.integers(0, 60), st.integers(0, 60))
def test_ranges_are_a_set_of_bytes(spans: list[tuple[int, int]], start: int, end: int) -> None:
    ranges, model = Ranges(), set[int]()
    for low, high in spans:
        new = ranges.add(low, high)
        assert new == len(set(range(low, high)) - model)
        model |= set(range(low, high))

    assert ranges.total == len(model)
    assert ranges.prefix == next(n for n in range(62) if n not in model)
    missing = [n for n in range(start, end) if n not in model]
    gap = ranges.gap(start, end)
    assert (gap is None) == (not missing)
    if gap is not None:
        assert gap[0] == missing[0]
        assert set(range(*gap)) <= set(missing)
        assert gap[1] == end or gap[1] in model


def test_a_lock_is_judged_by_its_change_and_not_by_clocks(tmp_path: Path) -> None:
    """A holder on another machine, whatever its clock says, keeps the lock while its content changes."""
    now = 0.0
    watch = Watch(tmp_path / ".lock-x", clock=lambda: now, patience_s=20)
    elsewhere = {"host": "far", "pid": 1, "space": "another boot", "started": "1"}
    path = tmp_path / ".lock-x.1"

    def beat(number: int) -> None:
        told = {"owner": "o", "process": elsewhere, "beat": number, "released": False, "done": number, "total": 9}
        path.write_text(json.dumps(told))

    for number in range(5):
        beat(number)
        now += 19
        following, holder = watch.next()
        assert following is None
        assert holder is not None
        assert holder.done == number
    now += 19.9
    assert watch.next()[0] is None
    now += 0.2
    assert watch.next()[0] == tmp_path / ".lock-x.2"


def test_only_one_takes_a_lock_and_a_late_one_notices(tmp_path: Path) -> None:
    lost: list[str] = []
    first = Lock(tmp_path / ".lock-x.1", lambda: (0, 0), lambda: lost.append("first"), beat_s=0.01)
    with pytest.raises(FileExistsError):
        Lock(tmp_path / ".lock-x.1", lambda: (0, 0), lambda: None)

    second = Lock(tmp_path / ".lock-x.2", lambda: (0, 0), lambda: None)

    assert not first.held
    assert second.held
    with pytest.raises(FileExistsError):  # its number had its time: the file is gone, and must not come back
        Lock(tmp_path / ".lock-x.1", lambda: (0, 0), lambda: None)
    first.release()
    second.release()
    assert lost in (["first"], [])  # the first's next beat may come after its release
    assert Watch(tmp_path / ".lock-x").next() == (tmp_path / ".lock-x.3", None)


def test_a_process_that_ended_here_is_known_and_one_elsewhere_is_not() -> None:
    from quire_engine.fetch.machine import myself

    me = myself()

    assert not me.is_gone
    assert Process(host=me.host, pid=me.pid, space=me.space, started="1").is_gone
    assert not Process(host="far", pid=me.pid, space="another", started="1").is_gone


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9), st.booleans(), st.booleans()), max_size=8),
    st.integers(0, 300),
)
def test_gc_removes_the_longest_unused_and_never_what_is_busy(
    models: list[tuple[int, int, bool, bool]], quota: int
) -> None:
    found = [
        Candidate(
            folder=Path(f"/{n}"),
            source="",
            revision="",
            bytes=size,
            used=float(used),
            finished=done,
            busy="x" if busy else "",
        )
        for n, (size, used, done, busy) in enumerate(models)
    ]

    gone = victims(found, quota)

    left = [each for each in found if each not in gone]
    assert not any(each.busy for each in gone)
    assert sum(each.bytes for each in left) <= quota or all(each.busy for each in left)
    if gone:
        assert sum(each.bytes for each in left) + gone[-1].bytes > quota
        finished = [each for each in gone if each.finished]
        stayed = [each for each in left if each.finished and not each.busy]
        assert all(a.used <= b.used for a in finished for b in stayed)


def test_the_summary_of_a_model_has_its_footprint_and_is_short() -> None:
    config = json.loads((locate_model("builtin://quire-tiny") / "config.json").read_text())

    told = json.loads(summary_line("hf://org/tiny", "a" * 40, [3, 4], config))

    shape = ModelShape.from_config(config)
    assert told["revision"] == "a" * 40
    assert (told["bytes"], told["files"]) == (7, 2)
    assert told["parameters"] == shape.parameters
    assert told["kvBytesPerToken"] == shape.kv_bytes_per_token(told["dtype"])
    assert told["maxModelLen"] == config["max_position_embeddings"]
    assert len(summary_line("s3://" + "x" * 5000, "a" * 40, [1] * 5000, {"architectures": ["y" * 9999]})) < LARGEST


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "no config.json"),
        ({"model_type": "mamba"}, "architecture not known"),
        ({"dtype": "int3"}, "dtype int3 not known"),
    ],
)
def test_a_model_whose_sizes_are_not_known_says_so(config: dict[str, object] | None, says: str) -> None:
    assert json.loads(summary_line("hf://a/b", "c", [1], config))["footprint"] == says


def test_every_reason_has_an_exit_code_of_its_own() -> None:
    codes = [outcome.exit_code for outcome in FETCH_OUTCOMES.values()]

    assert set(FETCH_OUTCOMES) == set(FetchReason)
    assert len(set(codes)) == len(codes)
    assert not set(codes) & {0, 1, 2, 10, 11, 12, 13, 14, 130, 137, 143}
    assert fetch_reason_of(codes[0]) == next(iter(FETCH_OUTCOMES))


def test_a_url_is_shown_without_what_is_secret() -> None:
    assert shown("https://user:pass@host/a?X-Amz-Signature=s#f") == "https://host/a"
    assert "secret" not in shown("https://[secret/a")
