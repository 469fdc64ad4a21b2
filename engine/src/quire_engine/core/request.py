"""What a client asks for, as the core sees it: token ids and how to choose the next one."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

__all__ = ["Grammar", "GrammarKind", "Request", "RequestId", "TokenParams"]

RequestId = NewType("RequestId", int)  # given by the engine's caller, never used twice


class GrammarKind(StrEnum):
    JSON = "json"  # a JSON schema
    REGEX = "regex"
    EBNF = "ebnf"
    STRUCTURAL_TAG = "structural_tag"  # text in which some tags have a grammar of their own, as JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the output must match, from its first token to its last."""

    kind: GrammarKind
    text: str
    param: str = field(default="structured_outputs", compare=False)  # the field of the request it came from


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenParams:
    """How tokens are chosen, and when to stop. Validated at the border (params.py); the core trusts it."""

    max_tokens: int
    min_tokens: int = 0  # before that many, no stop token is chosen and no stop string ends the output
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0  # tokens less likely than this share of the likeliest one's probability are left out
    repetition_penalty: float = 1.0  # of tokens in prompt or output: logits are divided by it, negative ones multiplied
    frequency_penalty: float = 0.0  # taken off a logit for each time the token stands in the output
    presence_penalty: float = 0.0  # taken off once, if it stands there at all
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed: tuple[int, ...] | None = None  # None: all tokens
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that are never completed
    seed: int = 0
    stop: tuple[bytes, ...] = ()
    special_text: bool = False  # special tokens have a text, too, in which stop strings are looked for
    stop_token_ids: frozenset[int] = frozenset()  # with the model's own end tokens, unless ignored
    grammar: Grammar | None = None  # with one, there is a stop token at least: it is chosen where the grammar may end
    logprobs: int | None = None  # with each token its log probability, and this many of the likeliest
    prompt_logprobs: int | None = None  # the same for the tokens of the prompt but the first
    batch_invariant: bool = False  # the same bits whatever else is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    id: RequestId
    prompt: tuple[int, ...]
    params: TokenParams
    priority: int = 0  # lower runs first, under the priority policy
    leader: RequestId | None = None  # added before this one, with the same prompt: its blocks are shared
    domain: tuple[str, ...] = ()  # only requests of the same domain share cached prefixes (adapter, tenant's salt)

    @property
    def prefix_domain(self) -> tuple[str, ...]:
        """What others have computed may have other bits."""
        return (*self.domain, "batch invariant") if self.params.batch_invariant else self.domain
