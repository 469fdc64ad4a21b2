"""Which engine gets a request: the same answer for the same input, load bounded, prefixes kept together."""

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from quire_router.balance import FACTOR, choose
from quire_router.registry import Strategy

ADDRESSES = st.lists(st.integers(1, 99).map(lambda n: f"10.0.0.{n}:8000"), min_size=1, max_size=12, unique=True)
KEYS = st.binary(min_size=1, max_size=16)
AFFINITY = Strategy.PREFIX_AFFINITY


def spread(addresses: list[str], keys: list[bytes], slack: int) -> dict[str, int]:
    """The loads after one request for each key, none of which ends."""
    loads = dict.fromkeys(addresses, 0)
    for key in keys:
        address = choose(loads, strategy=AFFINITY, key=key, slack=slack)
        assert address is not None
        loads[address] += 1
    return loads


@given(ADDRESSES, st.lists(KEYS, max_size=200), st.integers(0, 6))
def test_no_engine_has_more_than_its_bound_whatever_the_keys(
    addresses: list[str], keys: list[bytes], slack: int
) -> None:
    loads = spread(addresses, keys, slack)

    assert max(loads.values()) <= max(slack, ceil(FACTOR * len(keys) / len(addresses)))


@given(ADDRESSES.filter(lambda a: len(a) > 1), st.lists(KEYS, min_size=1, max_size=50), st.data())
def test_removing_an_engine_moves_only_its_keys(addresses: list[str], keys: list[bytes], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(addresses))
    before = {key: choose(dict.fromkeys(addresses, 0), strategy=AFFINITY, key=key) for key in keys}

    after = {key: choose({a: 0 for a in addresses if a != gone}, strategy=AFFINITY, key=key) for key in keys}

    assert all(after[key] == address for key, address in before.items() if address != gone)
    assert gone not in after.values()


@given(ADDRESSES, KEYS, st.data())
def test_the_order_of_the_engines_does_not_matter(addresses: list[str], key: bytes, data: st.DataObject) -> None:
    loads = {address: data.draw(st.integers(0, 9)) for address in addresses}
    shuffled = {address: loads[address] for address in data.draw(st.permutations(addresses))}

    for strategy in Strategy:
        assert choose(loads, strategy=strategy, key=key) == choose(shuffled, strategy=strategy, key=key)


@given(ADDRESSES, KEYS)
def test_a_key_stays_with_its_engine_until_that_is_overloaded(addresses: list[str], key: bytes) -> None:
    first = choose(dict.fromkeys(addresses, 0), strategy=AFFINITY, key=key)
    assert first is not None

    busy = {address: 3 if address == first else 0 for address in addresses}
    full = {address: 4 if address == first else 0 for address in addresses}

    assert choose(busy, strategy=AFFINITY, key=key) == first
    assert len(addresses) == 1 or choose(full, strategy=AFFINITY, key=key) != first


def test_keys_spread_evenly() -> None:
    addresses = [f"10.0.0.{n}:8000" for n in range(4)]
    chosen = [choose(dict.fromkeys(addresses, 0), strategy=AFFINITY, key=b"%d" % n) for n in range(4000)]

    assert all(800 < chosen.count(address) < 1200 for address in addresses)


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 100), min_size=1), st.integers(1, 500))
def test_without_a_key_the_least_loaded_is_chosen_and_ties_go_by_address(loads: dict[str, int], weight: int) -> None:
    address = choose(loads, strategy=AFFINITY, key=None, weight=weight)

    assert (loads[address or ""], address) == min((load, name) for name, load in loads.items())
    assert choose(loads, strategy=Strategy.LEAST_LOADED, key=b"any", weight=weight) == address


@given(ADDRESSES, st.integers(0, 1000))
def test_round_robin_takes_each_in_turn(addresses: list[str], start: int) -> None:
    loads = dict.fromkeys(addresses, 0)

    turns = [choose(loads, strategy=Strategy.ROUND_ROBIN, turn=start + n) for n in range(len(addresses))]

    assert sorted(turn or "" for turn in turns) == sorted(addresses)


def test_of_none_none_is_chosen() -> None:
    assert choose({}, strategy=AFFINITY, key=b"k") is None
