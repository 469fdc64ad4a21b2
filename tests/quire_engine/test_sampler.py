"""Drawing tokens: the right distribution, the same draw in any batch."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.runtime.batch import Sampling
from quire_engine.sampling.sampler import sample, to_unit, uniform_noise


def how(
    rows: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seeds: list[int] | None = None
) -> Sampling:
    """The same parameters in every row; positions count up, so that each row draws anew."""
    integers = torch.arange(rows)
    return Sampling(
        rows=integers, slots=integers, positions=integers, temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k), top_p=torch.full((rows,), top_p),
        seeds=torch.tensor(seeds if seeds is not None else [0] * rows), all_greedy=temperature == 0,
        any_top=top_k > 0 or top_p < 1,
    )  # fmt: skip


def draws(probabilities: list[float], count: int, **params: float) -> torch.Tensor:
    logits = torch.tensor(probabilities).log().repeat(count, 1)
    return sample(logits, how(count, **params)).bincount(minlength=len(probabilities)) / count  # type: ignore[arg-type]


def chi_square(seen: torch.Tensor, expected: list[float], count: int) -> float:
    wanted = torch.tensor(expected)
    kept = wanted > 0
    assert seen[~kept].sum() == 0
    return float((count * (seen[kept] - wanted[kept]).square() / wanted[kept]).sum())


COUNT = 100_000
LIMIT = 25.0  # chi-square with up to 5 degrees of freedom exceeds this once in 10,000 seeds; the seed is fixed


def test_draws_have_the_distribution_of_the_softmax() -> None:
    probabilities = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]

    assert chi_square(draws(probabilities, COUNT), probabilities, COUNT) < LIMIT


def test_temperature_sharpens() -> None:
    squares = torch.tensor([0.5, 0.3, 0.2]).square()

    assert chi_square(draws([0.5, 0.3, 0.2], COUNT, temperature=0.5), (squares / squares.sum()).tolist(), COUNT) < LIMIT


def test_top_k_keeps_the_best_k() -> None:
    assert chi_square(draws([0.4, 0.1, 0.3, 0.2], COUNT, top_k=2), [4 / 7, 0, 3 / 7, 0], COUNT) < LIMIT


def test_top_p_keeps_the_smallest_set_with_the_mass() -> None:
    assert chi_square(draws([0.5, 0.1, 0.3, 0.1], COUNT, top_p=0.75), [5 / 8, 0, 3 / 8, 0], COUNT) < LIMIT


def test_top_p_always_keeps_the_best_token() -> None:
    assert draws([0.4, 0.35, 0.25], 1000, top_p=0.01).tolist() == [1, 0, 0]


def test_top_k_and_top_p_together() -> None:
    """top_p looks at the mass among those which top_k left."""
    assert chi_square(draws([0.4, 0.3, 0.2, 0.1], COUNT, top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0], COUNT) < LIMIT


def test_greedy_rows_among_sampled_ones_take_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    mixed = how(2)
    mixed.temperature[0] = 0

    assert sample(logits, mixed)[0] == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6), st.data())
def test_a_row_draws_the_same_in_any_batch(seeds: list[int], data: st.DataObject) -> None:
    logits = torch.randn(len(seeds), 40, generator=torch.Generator().manual_seed(1))
    order = data.draw(st.permutations(range(len(seeds))))
    params = how(len(seeds), seeds=seeds)
    together = sample(logits, params)

    shuffled = Sampling(
        rows=params.rows, slots=params.slots, positions=params.positions[order], temperature=params.temperature,
        top_k=params.top_k, top_p=params.top_p, seeds=params.seeds[order], all_greedy=False, any_top=False,
    )  # fmt: skip

    assert sample(logits[order], shuffled).tolist() == together[order].tolist()


def test_noise_is_uniform_and_rows_and_columns_are_independent() -> None:
    noise = uniform_noise(torch.arange(200), torch.zeros(200, dtype=torch.int64), 1000)

    assert float(noise.min()) > 0
    assert float(noise.max()) < 1
    histogram = torch.histc(noise, bins=20, min=0, max=1) / noise.numel()
    assert float((histogram - 0.05).abs().max()) < 0.002
    rows = torch.corrcoef(noise)
    assert float((rows - torch.eye(200)).abs().max()) < 0.2
    assert abs(float(torch.corrcoef(torch.stack((noise[:, :-1].flatten(), noise[:, 1:].flatten())))[0, 1])) < 0.01


def test_no_word_becomes_0_or_1() -> None:
    """At either end the noise would be infinite, and the token drawn whatever its logit."""
    ends = to_unit(torch.tensor([0, 1, 0xFFFFFFFE, 0xFFFFFFFF]))

    assert bool((ends > 0).all())
    assert bool((ends < 1).all())


def test_a_hopeless_token_is_never_drawn() -> None:
    logits = torch.zeros(2000, 1024)
    logits[:, 5] = 60.0

    assert sample(logits, how(2000)).unique().tolist() == [5]


def test_the_smallest_top_p_keeps_the_best_token() -> None:
    assert draws([0.2, 0.5, 0.3], 1000, top_p=1e-50).tolist() == [0, 1, 0]


def test_neighbouring_seeds_and_positions_do_not_share_draws() -> None:
    """(seed 1, position 0) and (seed 0, position 1) must be unrelated."""
    a = uniform_noise(torch.tensor([1]), torch.tensor([0]), 1000)
    b = uniform_noise(torch.tensor([0]), torch.tensor([1]), 1000)

    assert abs(float(torch.corrcoef(torch.cat((a, b)))[0, 1])) < 0.15
