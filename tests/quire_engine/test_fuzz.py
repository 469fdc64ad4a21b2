"""Requests at random, and what an API description makes of them: nothing brings the server down, and nothing stays."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from fakes.controls import Controls
from fakes.fuzzing import fuzz, settled
from fakes.serving import Running, children, serving
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

pytestmark = pytest.mark.xdist_group("fuzz")


@pytest.fixture(scope="module", params=[True, False], ids=["prefixes are kept", "no prefix is kept"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    caching = "--enable-prefix-caching" if request.param else "--no-enable-prefix-caching"
    options = ["--dtype=float32", "--kv-cache-gib=0.02", "--max-num-seqs=16", caching]
    with serving(tmp_path_factory.mktemp("fuzz"), "serve", "builtin://quire-tiny", *options) as running:
        yield running


def test_requests_at_random_leave_nothing_and_change_nothing(server: Running) -> None:
    (engine,) = children(server.process.pid)

    with Controls(server) as controls:
        outcome = fuzz(server, 500, seed=1)

    assert outcome.wrong == []
    assert {"200", "400"} <= set(outcome.seen)
    assert (controls.wrong, controls.compared > 0) == ([], True)
    assert set(settled(server).values()) == {0.0}
    assert children(server.process.pid)[0] == engine
    assert "Traceback" not in Path(server.log).read_text()


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: str(mode.value))
def test_what_our_api_description_allows_and_what_it_does_not_is_answered(
    tmp_path_factory: pytest.TempPathFactory, mode: schemathesis.GenerationMode
) -> None:
    options = ["--dtype=float32", "--kv-cache-gib=0.05", "--max-num-seqs=64", "--max-output-tokens=4"]
    with serving(tmp_path_factory.mktemp("schema"), "serve", "builtin://quire-tiny", *options) as server:
        description = json.loads(server.request("GET", "/openapi.json")[2])
        seen, statuses = set(), set()
        for found in schemathesis.openapi.from_dict(description).get_all_operations():
            operation = found.ok()
            seen.add(operation.path)

            @settings(
                max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def answer(case: schemathesis.Case) -> None:
                response = case.call(base_url=server.url, timeout=60)
                statuses.add(response.status_code)
                assert response.status_code < 500, f"{case.as_curl_command()}: {response.text}"

            try:
                answer()
            except Unsatisfiable:  # there is nothing about it that could be wrong
                assert mode is schemathesis.GenerationMode.NEGATIVE

        assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/embeddings"} <= seen
        assert (200 if mode is schemathesis.GenerationMode.POSITIVE else 400) in statuses
        assert set(settled(server).values()) == {0.0}
        assert "Traceback" not in server.log.read_text()
