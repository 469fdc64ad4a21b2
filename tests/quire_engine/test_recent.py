"""What was measured in the last minute."""

from quire_engine.server.recent import Recent


def test_a_quantile_is_of_the_last_minute_alone() -> None:
    recent = Recent()
    recent.add(0.0, 100.0)
    for number in range(20):
        recent.add(30.0 + number, float(number))

    assert recent.quantile(0.95, 49.0) == 19.0
    assert recent.quantile(0.5, 61.0) == 10.0
    assert recent.quantile(0.95, 1000.0) is None
