"""Who serves what, and who gets the next request."""

from quire_router import Registry, Route


def registry(*addresses: str) -> Registry:
    made = Registry()
    made.replace([Route(names=("m", "alias"), addresses=addresses)])
    return made


def test_every_name_of_a_route_is_a_model() -> None:
    assert registry("a:1").models == ["m", "alias"]
    assert registry("a:1").knows("alias")
    assert not registry("a:1").knows("other")


def test_the_least_loaded_backend_is_picked_and_ties_go_by_address() -> None:
    made = registry("b:1", "a:1")
    first = made.pick("m")
    assert first is not None
    first.open += 1

    second = made.pick("m")

    assert (first.address, second and second.address) == ("a:1", "b:1")


def test_a_known_model_without_backends_has_none() -> None:
    assert registry().pick("m") is None


def test_backends_that_stay_keep_their_count_and_others_go() -> None:
    made = registry("a:1", "b:1")
    kept = made.pick("m")
    assert kept is not None
    kept.open = 3

    made.replace([Route(names=("m",), addresses=("a:1", "c:1"))])

    assert made.pick("m") == made.pick("m")
    picked = made.pick("m")
    assert picked is not None
    assert picked.address == "c:1"
    picked.open = 9
    assert made.pick("m") is kept
