"""Requests at random, and what an API description makes of them: nothing brings the server down, and nothing stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.controls import Controls
from fakes.fuzzing import fuzz, settled
from fakes.serving import Running, children, serving

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
