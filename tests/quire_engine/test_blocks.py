"""The pool of blocks: who holds one, what is found in it, which one is given up first."""

import pytest

from quire_engine.core.blocks import BlockPool, Prefix

ROOT = Prefix(None, ())


def fill(pool: BlockPool, tokens: list[int], root: Prefix = ROOT) -> list[int]:
    """Hold and register the blocks of `tokens`."""
    blocks = pool.allocate(len(tokens) // pool.block_size)
    prefix = root
    for i, block in enumerate(blocks):
        prefix = pool.register(block, prefix, tuple(tokens[i * pool.block_size : (i + 1) * pool.block_size]))
    return blocks


def test_a_pool_refuses_to_release_twice_and_to_give_what_it_has_not() -> None:
    pool = BlockPool(2, 4)
    taken = pool.allocate(1)
    pool.release(taken)

    with pytest.raises(AssertionError, match="released twice"):
        pool.release(taken)
    with pytest.raises(AssertionError, match="3 blocks asked"):
        pool.allocate(3)


def test_check_finds_a_leak_and_a_double_owner() -> None:
    pool = BlockPool(4, 4)
    held = pool.allocate(2)

    pool.check([held])
    with pytest.raises(AssertionError):
        pool.check([held[:1]])
    with pytest.raises(AssertionError):
        pool.check([held, held[:1]])


def test_the_longest_known_beginning_is_found_held_or_free() -> None:
    pool = BlockPool(8, 2)
    blocks = fill(pool, [1, 2, 3, 4, 5, 6])

    assert pool.match(ROOT, [1, 2, 3, 4, 9, 9]) == blocks[:2]
    pool.release(blocks)
    assert pool.match(ROOT, [1, 2, 3, 4, 5, 6, 7]) == blocks
    assert pool.match(ROOT, [1]) == []
    assert pool.match(ROOT, [3, 4]) == []


def test_domains_do_not_see_each_other() -> None:
    pool = BlockPool(8, 2)
    fill(pool, [1, 2], Prefix(None, ("salt",)))

    assert pool.match(ROOT, [1, 2]) == []
    assert len(pool.match(Prefix(None, ("salt",)), [1, 2])) == 1


def test_chains_that_hash_alike_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if every chain had the same hash, only equal tokens would be found."""
    monkeypatch.setattr(Prefix, "__hash__", lambda self: 7)
    pool = BlockPool(16, 2)
    first, second = fill(pool, [1, 2, 3, 4]), fill(pool, [5, 6, 3, 4])

    assert pool.match(ROOT, [1, 2, 3, 4]) == first
    assert pool.match(ROOT, [5, 6, 3, 4]) == second
    assert pool.match(ROOT, [3, 4]) == []


def test_the_tail_of_the_least_recently_used_goes_first() -> None:
    pool = BlockPool(4, 2)
    old, new = fill(pool, [1, 2, 3, 4]), fill(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)

    pool.allocate(1)

    assert pool.match(ROOT, [1, 2, 3, 4]) == old[:1]
    assert pool.match(ROOT, [5, 6, 7, 8]) == new


def test_what_was_used_again_is_kept_longer() -> None:
    pool = BlockPool(4, 2)
    old, new = fill(pool, [1, 2, 3, 4]), fill(pool, [5, 6, 7, 8])
    pool.release(old)
    pool.release(new)
    pool.share(old)
    pool.release(old)

    pool.allocate(2)

    assert pool.match(ROOT, [1, 2, 3, 4]) == old
    assert pool.match(ROOT, [5, 6]) == []


def test_a_child_is_found_again_after_its_parent_was_evicted_and_computed_anew() -> None:
    pool = BlockPool(3, 2)
    blocks = fill(pool, [1, 2, 3, 4])
    parent, child = blocks
    pool.release([parent])
    pool.share([child])
    pool.release([child])
    (other,) = pool.allocate(1)  # the empty one
    (evicted,) = pool.allocate(1)
    assert evicted == parent
    assert pool.match(ROOT, [1, 2, 3, 4]) == []

    pool.register(other, ROOT, (1, 2))

    assert pool.match(ROOT, [1, 2, 3, 4]) == [other, child]


def test_the_same_content_twice_is_findable_once() -> None:
    pool = BlockPool(4, 2)
    first, second = fill(pool, [1, 2]), fill(pool, [1, 2])

    pool.release(first)
    pool.release(second)

    pool.check([])
    assert pool.match(ROOT, [1, 2]) == first
    assert pool.num_free == 4


def test_forgetting_leaves_nothing_to_find() -> None:
    pool = BlockPool(4, 2)
    held, freed = fill(pool, [1, 2]), fill(pool, [3, 4])
    pool.release(freed)

    pool.forget()

    pool.check([held])
    assert pool.match(ROOT, [1, 2]) == pool.match(ROOT, [3, 4]) == []
