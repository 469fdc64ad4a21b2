"""Memory of the host: zeros, of which each page is asked for once."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.runtime.pages import in_order, zeros

PAGE = 4096
LARGE = 1 << 21


@given(areas=st.integers(1, 60), area=st.integers(1, 5 * LARGE))
def test_every_byte_is_asked_for_and_the_first_of_all_areas_first(areas: int, area: int) -> None:
    stretches = list(in_order(areas * area, areas))

    covered = 0
    for start, count in sorted(stretches):
        assert start % PAGE == 0
        assert start <= covered
        covered = max(covered, start + count)
    assert covered == areas * area
    for number, (start, _) in enumerate(stretches[:areas]):
        assert start <= number * area < start + PAGE


@pytest.mark.parametrize("blocks", [1, 700, 40_000])
def test_the_memory_is_zeros_whatever_its_size(blocks: int) -> None:
    memory = zeros((3, 2, blocks, 16, 16), torch.bfloat16, areas=6)

    assert memory.shape == (3, 2, blocks, 16, 16)
    assert not memory.any()


def test_what_is_written_while_pages_come_stays() -> None:
    memory = zeros((2, 2, 1 << 24), torch.bfloat16, areas=4)

    memory.fill_(3.0)

    for thread in threading.enumerate():
        if thread.name == "pages":
            thread.join(60)
    assert bool((memory == 3.0).all())
