"""Choosing tokens: the right distribution, each processor as it is defined, the same token in any batch."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_engine.core.request import TokenParams
from quire_engine.core.step import Placement
from quire_engine.ops.reference import reference_ops
from quire_engine.sampling.logprobs import token_logprobs
from quire_engine.sampling.noise import row_words, to_unit, uniform
from quire_engine.sampling.ordering import best_first
from quire_engine.sampling.sampler import Sampler

OPS = reference_ops()
CPU = torch.device("cpu")
VOCABULARY = 40


@dataclass
class Row:
    """A sequence, as far as a sampler sees it."""

    params: TokenParams
    prompt: list[int] = field(default_factory=lambda: [1])
    output: list[int] = field(default_factory=list)

    def place(self, sampler: Sampler, slot: int) -> None:
        tokens = self.prompt + self.output
        sampler.place(Placement(slot=slot, tokens=tokens, num_prompt=len(self.prompt), blocks=[], params=self.params))

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.output)


def how(**params: object) -> TokenParams:
    return TokenParams(**{"max_tokens": 100, **params})  # type: ignore[arg-type]


def choose(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    sampler = Sampler(logits.shape[-1], len(rows), CPU, OPS)
    for slot, row in enumerate(rows):
        row.place(sampler, slot)
    return sampler.sample(logits.clone(), list(range(len(rows))), [row.position for row in rows]).tokens.tolist()  # type: ignore[no-any-return]


def random_logits(rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


# ---------------------------------------------------------------------- the distribution


def draws(probabilities: list[float], count: int, **params: object) -> torch.Tensor:
    """The share of each token among `count` draws: one sequence, at one position after the other."""
    sampler = Sampler(len(probabilities), 1, CPU, OPS)
    Row(how(**params)).place(sampler, 0)
    logits = torch.tensor(probabilities).log().repeat(count, 1)
    tokens = sampler.sample(logits, [0] * count, list(range(count))).tokens
    return tokens.bincount(minlength=len(probabilities)) / count


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


def test_the_smallest_top_p_keeps_the_best_token() -> None:
    assert draws([0.2, 0.5, 0.3], 1000, top_p=1e-50).tolist() == [0, 1, 0]


def test_top_k_and_top_p_together() -> None:
    """top_p looks at the mass among those which top_k left."""
    assert chi_square(draws([0.4, 0.3, 0.2, 0.1], COUNT, top_k=3, top_p=0.7), [4 / 7, 3 / 7, 0, 0], COUNT) < LIMIT


def test_min_p_rules_out_what_is_much_less_likely_than_the_best() -> None:
    assert chi_square(draws([0.5, 0.3, 0.15, 0.05], COUNT, min_p=0.4), [5 / 8, 3 / 8, 0, 0], COUNT) < LIMIT


def test_a_hopeless_token_is_never_drawn() -> None:
    assert draws([1e-26] * 5 + [1.0] + [1e-26] * 1018, 2000).argmax() == 5


def test_greedy_rows_among_sampled_ones_take_the_best() -> None:
    logits = random_logits(50)
    rows = [Row(how(temperature=0.0 if i % 2 else 5.0, seed=i)) for i in range(50)]

    tokens = choose(logits, rows)

    assert tokens[1::2] == logits.argmax(dim=-1)[1::2].tolist()
    assert tokens[::2] != logits.argmax(dim=-1)[::2].tolist()


# ---------------------------------------------------------------------- the noise


def noise(seeds: list[int], positions: list[int], vocabulary: int) -> torch.Tensor:
    words = torch.from_numpy(row_words(np.array(seeds), np.array(positions)))
    return uniform(words, vocabulary)


def test_noise_is_uniform_and_rows_and_columns_are_independent() -> None:
    seen = noise(list(range(200)), [0] * 200, 1000)

    assert float(seen.min()) > 0
    assert float(seen.max()) < 1
    histogram = torch.histc(seen, bins=20, min=0, max=1) / seen.numel()
    assert float((histogram - 0.05).abs().max()) < 0.002
    rows = torch.corrcoef(seen)
    assert float((rows - torch.eye(200)).abs().max()) < 0.2
    assert abs(float(torch.corrcoef(torch.stack((seen[:, :-1].flatten(), seen[:, 1:].flatten())))[0, 1])) < 0.01


def test_no_word_becomes_0_or_1() -> None:
    """At either end the noise would be infinite, and the token drawn whatever its logit."""
    ends = to_unit(torch.tensor([0, 1, -2, -1], dtype=torch.int32))

    assert bool((ends > 0).all())
    assert bool((ends < 1).all())


def test_neighbouring_seeds_and_positions_do_not_share_draws() -> None:
    """(seed 1, position 0) and (seed 0, position 1) must be unrelated."""
    a = noise([1], [0], 1000)
    b = noise([0], [1], 1000)

    assert abs(float(torch.corrcoef(torch.cat((a, b)))[0, 1])) < 0.15


def hashed(seed: int, position: int, token: int) -> float:
    """The noise, spelled out: what it must be for ever, so that seeds keep their meaning."""

    def mix(x: int) -> int:
        x &= 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    row = mix(mix(seed) ^ mix((seed >> 32) + 0x9E3779B9) ^ mix(position + 0x85EBCA6B))
    return ((mix(row ^ mix(token + 0xC2B2AE35)) >> 9) + 0.5) / 2**23


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**24))
def test_noise_is_the_hash_of_seed_position_and_token(seed: int, position: int) -> None:
    seen = noise([seed], [position], 37)[0].tolist()

    assert seen == [hashed(seed, position, token) for token in range(37)]


# ---------------------------------------------------------------------- each processor, against its definition


def never(logits: list[float], tokens: set[int]) -> list[float]:
    return [-math.inf if token in tokens else logit for token, logit in enumerate(logits)]


def processed(logits: list[float], row: Row) -> list[float]:
    """What the logits are after all processors, slowly."""
    params, output = row.params, row.output
    if params.allowed is not None:
        logits = never(logits, set(range(len(logits))) - set(params.allowed))
    for word in params.bad_words:
        if len(word) == 1 or output[-(len(word) - 1) :] == list(word[:-1]):
            logits = never(logits, {word[-1]})
    bias = dict(params.logit_bias)
    logits = [logit + bias.get(token, 0.0) for token, logit in enumerate(logits)]
    if len(output) < params.min_tokens:
        logits = never(logits, set(params.stop_token_ids))
    done = []
    for token, logit in enumerate(logits):
        if token in row.prompt + output:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * output.count(token)
        done.append(logit - params.presence_penalty * (token in output))
    return done


def left(logits: list[float], params: TokenParams) -> list[int]:
    """What min-p, top-k and top-p leave of logits that were divided by the temperature."""
    best = max(logits)
    kept = [t for t, v in enumerate(logits) if params.min_p == 0 or v - best >= math.log(params.min_p)]
    order = sorted(kept, key=lambda t: (-logits[t], t))
    if params.top_k:
        order = order[: params.top_k]
    total = sum(math.exp(logits[t] - best) for t in order)
    before, chosen = 0.0, []
    for token in order:
        if chosen and params.top_p < 1 and before >= params.top_p * total:
            break
        chosen.append(token)
        before += math.exp(logits[token] - best)
    return chosen


def expected(logits: list[float], row: Row) -> int:
    logits, params = processed(logits, row), row.params
    if params.temperature == 0:
        return logits.index(max(logits))
    scaled = [logit / params.temperature for logit in logits]
    noisy = {
        token: scaled[token] - math.log(-math.log(hashed(params.seed, row.position, token)))
        for token in left(scaled, params)
    }
    return max(noisy, key=lambda token: noisy[token])


tokens = st.integers(0, VOCABULARY - 1)
PARAMS: dict[str, dict[str, st.SearchStrategy[object]]] = {
    "allowed": {"allowed": st.lists(tokens, min_size=1, max_size=20, unique=True).map(tuple)},
    "bad words": {
        "bad_words": st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), max_size=8).map(tuple)
    },
    "bias": {"logit_bias": st.dictionaries(tokens, st.floats(-5, 5, width=16)).map(lambda d: tuple(d.items()))},
    "min tokens": {"min_tokens": st.integers(0, 6), "stop_token_ids": st.frozensets(tokens, max_size=30)},
    "penalties": {
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.25, 2.0]),
        "frequency_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
    },
    "draws": {
        "temperature": st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        "min_p": st.sampled_from([0.0, 0.011, 0.13, 1.0]),
        "top_k": st.integers(0, VOCABULARY),
        "top_p": st.sampled_from([1e-9, 0.31, 0.87, 0.999, 1.0]),
        "seed": st.integers(0, 2**63 - 1),
    },
}


@st.composite
def sequences(draw: st.DrawFn, kinds: list[str]) -> Row:
    """Few different tokens, so that sequences and words meet."""
    chosen = {name: draw(values) for kind in kinds for name, values in PARAMS[kind].items()}
    prompt = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    output = draw(st.lists(st.integers(0, 3), max_size=6))
    return Row(how(**{"temperature": 0.0, **chosen}), prompt, output)


@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("kinds", [[kind] for kind in PARAMS] + [list(PARAMS)], ids=[*PARAMS, "all"])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_processor_does_what_it_says(kinds: list[str], data: st.DataObject, seed: int) -> None:
    rows = data.draw(st.lists(sequences(kinds), min_size=1, max_size=5))
    logits = random_logits(len(rows), seed=seed)

    seen = choose(logits, rows)

    for row, token, values in zip(rows, seen, logits.tolist(), strict=True):
        if any(math.isfinite(value) for value in processed(values, row)):
            assert token == expected(values, row)
        else:
            assert token == -2


@settings(deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=70, max_size=70), st.integers(0, 70), st.sampled_from([0.25, 0.5, 0.9, 1.0])
)
def test_among_equals_those_with_the_lower_ids_stay(values: list[int], top_k: int, top_p: float) -> None:
    """With more tokens than are looked at at first, so that the order is cut among equals as well."""
    logits = [float(value) for value in values] + [-50.0] * 230
    rows = [Row(how(top_k=top_k, top_p=top_p, seed=seed)) for seed in range(20)]

    seen = choose(torch.tensor([logits] * 20), rows)

    assert set(seen) <= set(left(logits, rows[0].params))
    assert seen == [expected(logits, row) for row in rows]


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("top_k", [0, 10, 900, 9000])
def test_however_much_of_the_order_is_needed(top_k: int, top_p: float) -> None:
    """Flat and peaked distributions over 10,000 tokens: 256 of them, 8192 or all decide."""
    scale = torch.tensor([[0.1], [0.5], [1.0], [3.0]])
    logits = random_logits(4, 10_000) * scale
    rows = [Row(how(top_k=top_k, top_p=top_p, seed=i)) for i in range(4)]

    seen = choose(logits, rows)

    assert seen == [expected(values, row) for values, row in zip(logits.tolist(), rows, strict=True)]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30), st.data())
def test_the_best_come_first_and_among_equals_the_lowest_id(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))

    _, ids = best_first(torch.tensor([values]), count)

    assert ids[0].tolist() == sorted(range(len(values)), key=lambda t: (-values[t], t))[:count]


# ---------------------------------------------------------------------- batches and time


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_row_gets_the_same_token_in_any_batch(data: st.DataObject) -> None:
    rows = data.draw(st.lists(sequences(list(PARAMS)) | sequences([]) | sequences(["draws"]), min_size=2, max_size=8))
    order = data.draw(st.permutations(range(len(rows))))
    logits = random_logits(len(rows), 1500)

    together = choose(logits, rows)

    assert choose(logits[order], [rows[i] for i in order]) == [together[i] for i in order]
    assert [choose(logits[i : i + 1], [rows[i]])[0] for i in range(len(rows))] == together


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_a_resumed_sequence_goes_on_as_if_nothing_had_happened(data: st.DataObject) -> None:
    """The output is known to the device alone while it runs; a resumed sequence brings it along."""
    rows = data.draw(st.lists(sequences(list(PARAMS)), min_size=1, max_size=4))
    when = data.draw(st.sets(st.integers(1, 7)))
    slots = list(range(len(rows)))
    steady, moved = (Sampler(VOCABULARY, len(rows), CPU, OPS) for _ in range(2))
    for slot, row in enumerate(rows):
        row.place(steady, slot)
        row.place(moved, slot)

    for step in range(8):
        logits = random_logits(len(rows), seed=step) / 4
        positions = [row.position for row in rows]
        if step in when:
            slots = slots[1:] + slots[:1]
            for slot, row in zip(slots, rows, strict=True):
                row.place(moved, slot)
        order = np.argsort(slots)
        expected_tokens = steady.sample(logits.clone(), list(range(len(rows))), positions).tokens.tolist()
        seen = moved.sample(logits[order].clone(), [slots[i] for i in order], [positions[i] for i in order]).tokens
        assert seen.tolist() == [expected_tokens[i] for i in order]
        for row, token in zip(rows, expected_tokens, strict=True):
            row.output.append(max(token, 0))


def test_a_slot_forgets_who_had_it() -> None:
    sampler = Sampler(VOCABULARY, 1, CPU, OPS)
    everything = how(
        allowed=(1, 2), bad_words=((2,),), logit_bias=((1, 5.0),), min_tokens=5, stop_token_ids=frozenset({3}),
        repetition_penalty=2.0, temperature=2.0, top_k=1, top_p=0.5, min_p=0.5, logprobs=3,
    )  # fmt: skip
    Row(everything).place(sampler, 0)
    Row(how(temperature=0.0)).place(sampler, 0)
    logits = random_logits(1)

    sampled = sampler.sample(logits.clone(), [0], [1])

    assert sampled.tokens.tolist() == logits.argmax(dim=-1).tolist()
    assert sampled.logprobs() == {}


def test_seeds_decide() -> None:
    logits = torch.zeros(20, VOCABULARY)

    same = choose(logits, [Row(how(seed=7)) for _ in range(20)])
    others = choose(logits, [Row(how(seed=seed)) for seed in range(20)])

    assert len(set(same)) == 1
    assert len(set(others)) > 10


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.5},
        {"repetition_penalty": 2.0, "logprobs": 2},
    ],
)
@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf])
def test_a_row_that_is_no_numbers_gives_no_token_and_leaves_the_others_alone(
    params: dict[str, object], odd: float
) -> None:
    logits = random_logits(3)
    rows = [Row(how(**params)) for _ in range(3)]
    fine = choose(logits, rows)
    logits[1, 5] = odd

    seen = choose(logits, rows)

    assert seen == [fine[0], -1, fine[2]]


# ---------------------------------------------------------------------- log probabilities


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_logprobs_are_those_of_the_raw_logits(data: st.DataObject) -> None:
    tops = data.draw(st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=6))
    rows = [Row(how(temperature=2.0, top_k=9, repetition_penalty=1.5, seed=i, logprobs=t)) for i, t in enumerate(tops)]
    logits = random_logits(len(rows)).round()  # with ties
    sampler = Sampler(VOCABULARY, len(rows), CPU, OPS)
    for slot, row in enumerate(rows):
        row.place(sampler, slot)

    sampled = sampler.sample(logits.clone(), list(range(len(rows))), [1] * len(rows))

    found = sampled.logprobs()
    assert set(found) == {i for i, top in enumerate(tops) if top is not None}
    for i, score in found.items():
        exact = logits[i].double().log_softmax(dim=-1).tolist()
        order = sorted(range(VOCABULARY), key=lambda t: (-exact[t], t))
        assert score.token == sampled.tokens[i]
        assert score.logprob == pytest.approx(exact[score.token], abs=1e-5)
        assert score.rank == sum(value > exact[score.token] for value in exact) + 1
        assert [t for t, _ in score.top] == order[: tops[i]]
        assert [v for _, v in score.top] == pytest.approx([exact[t] for t in order[: tops[i]]], abs=1e-5)


def test_a_row_without_a_token_has_no_logprob() -> None:
    sampler = Sampler(VOCABULARY, 1, CPU, OPS)
    Row(how(logprobs=2)).place(sampler, 0)

    sampled = sampler.sample(torch.full((1, VOCABULARY), math.nan), [0], [1])

    assert sampled.logprobs() == {}


def test_given_tokens_are_scored_like_sampled_ones() -> None:
    logits = random_logits(3000, 1000)
    targets = torch.arange(3000) % 1000

    scores = token_logprobs(OPS, logits, targets, 2)

    exact = logits.log_softmax(dim=-1)
    assert [score.token for score in scores] == targets.tolist()
    assert [score.logprob for score in scores] == exact[torch.arange(3000), targets].tolist()
    assert [score.top[0][0] for score in scores] == logits.argmax(dim=-1).tolist()
    assert {len(score.top) for score in scores} == {2}
