"""The histogram of the hot path, beside prometheus_client's own."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from quire_engine.server.tally import Tally

BUCKETS = (0.001, 0.5, 1, 100)
LABELS = {"model_name": 'a "model"', "engine": "0"}


@given(st.lists(st.sampled_from([*BUCKETS, 1e9]) | st.floats(0, 200)))
def test_a_tally_is_rendered_like_a_histogram_of_prometheus_client(values: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("seconds", "What it is.", BUCKETS, LABELS)
    ours.register(tally)
    histogram = Histogram("seconds", "What it is.", LABELS, buckets=BUCKETS, registry=theirs).labels(**LABELS)

    for value in values:
        tally.observe(value)
        histogram.observe(value)

    assert lines(ours) == lines(theirs)


def lines(registry: CollectorRegistry) -> list[str]:
    """But for the time when it was made."""
    return [
        line.rpartition(" ")[0] if line.startswith("seconds_created") else line
        for line in generate_latest(registry).decode().splitlines()
    ]
