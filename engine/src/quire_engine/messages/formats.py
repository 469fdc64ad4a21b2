"""The formats in which models write tool calls and reasoning: one row each, and all that is known of it.

Names are those of vLLM's parsers, so that its flags keep their meaning. A new format of a known syntax
is a new row. `detect` chooses the rows of a checkpoint from its own chat template.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "REASONING_FORMATS",
    "TOOL_FORMATS",
    "ReasoningFormat",
    "Syntax",
    "ToolFormat",
    "Writing",
    "detect",
]


class Syntax(StrEnum):
    OBJECTS = "objects"  # {"name": "f", "arguments": {...}}
    NAMED = "named"  # f<marker>{...}
    PYTHONIC = "pythonic"  # [f(a=1), g()]
    XML = "xml"  # f><parameter=a>1</parameter>
    CHANNELS = "channels"  # a header that names the recipient, then JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How a grammar makes the model write calls: begin, then calls with `between` between them, then end.

    Line breaks are where models differ from the example of their template: the model may leave out any that is here.
    """

    begin: str = ""
    before_name: str
    after_name: str
    after_arguments: str
    between: str | None  # None: the format ends the output after one call
    end: str = ""
    style: str = "json"  # of xgrammar's JSON schema format
    excludes: tuple[str, ...] = ()  # what no string may contain, for it would end the value


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    name: str
    syntax: Syntax
    openers: tuple[str, ...] = ()  # anywhere in content, a call follows
    blocks: tuple[str, ...] = ()  # an opener follows
    bare: str = ""  # a message that begins with this character may be a call, with no marker
    between: str | None = None  # calls may follow each other with this, or nothing, and no marker
    name_ends: tuple[str, ...] = ()  # what separates the name from the arguments
    closers: tuple[str, ...] = ()  # follow a call, each once and in this order, if at all
    markers: tuple[str, ...]  # special tokens of some checkpoints, which must stay visible in the text
    signs: tuple[tuple[str, ...], ...]  # a template that has all of one of these writes this format
    writings: tuple[Writing, ...]  # the model may choose; none: no grammar can say it
    short_ids: bool = False  # templates want the id of a call to be nine letters and digits


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    name: str
    opens: tuple[str, ...]  # at the beginning of a message
    closes: tuple[str, ...]
    markers: tuple[str, ...]
    signs: tuple[tuple[str, ...], ...]
    after_close: str = "\n\n"  # what a grammar lets the model write before what follows
    channels: bool = False  # it is the syntax of the whole message, calls included

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends within reasoning, so that the model writes no opening tag any more."""
        return prompt.rstrip().endswith(self.opens)

    def is_within(self, message: str) -> bool:
        """Whether a message, which the model is to go on with, ends within reasoning."""
        return message.lstrip().startswith(self.opens) and not any(close in message for close in self.closes)


CHANNELS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")

_TOOL_FORMATS = (  # the first whose signs are there is detected
    ToolFormat(
        name="gpt_oss",
        syntax=Syntax.CHANNELS,
        markers=CHANNELS,
        signs=(("<|channel|>", "<|message|>"),),
        writings=(
            Writing(
                before_name="<|channel|>commentary to=functions.",
                after_name=" <|constrain|>json<|message|>",
                after_arguments="",  # <|call|> is an end token
                between=None,
            ),
        ),
    ),
    ToolFormat(
        name="qwen3_xml",
        syntax=Syntax.XML,
        openers=("<function=",),
        blocks=("<tool_call>",),
        closers=("</function>", "</tool_call>"),
        markers=("<tool_call>", "</tool_call>"),
        signs=(("<function=", "<parameter="),),
        writings=(
            Writing(
                before_name="<tool_call>\n<function=",
                after_name=">\n",
                after_arguments="\n</function>\n</tool_call>",
                between="\n",
                style="qwen_xml",
                excludes=("</parameter>",),
            ),
        ),
    ),
    ToolFormat(
        name="deepseek_v3",
        syntax=Syntax.NAMED,
        blocks=("<｜tool▁calls▁begin｜>",),
        openers=("<｜tool▁call▁begin｜>function<｜tool▁sep｜>",),
        name_ends=("```json",),
        closers=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        markers=(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
        ),
        signs=(("<｜tool▁calls▁begin｜>", "```json"),),
        writings=(
            Writing(
                begin="<｜tool▁calls▁begin｜>",
                before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                after_name="\n```json\n",
                after_arguments="\n```<｜tool▁call▁end｜>",
                between="\n",
                end="<｜tool▁calls▁end｜>",
            ),
        ),
    ),
    ToolFormat(
        name="deepseek_v31",
        syntax=Syntax.NAMED,
        blocks=("<｜tool▁calls▁begin｜>",),
        openers=("<｜tool▁call▁begin｜>",),
        name_ends=("<｜tool▁sep｜>",),
        closers=("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        markers=(
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
        ),
        signs=(("<｜tool▁calls▁begin｜>",),),
        writings=(
            Writing(
                begin="<｜tool▁calls▁begin｜>",
                before_name="<｜tool▁call▁begin｜>",
                after_name="<｜tool▁sep｜>",
                after_arguments="<｜tool▁call▁end｜>",
                between="",
                end="<｜tool▁calls▁end｜>",
            ),
        ),
    ),
    ToolFormat(
        name="mistral",
        syntax=Syntax.NAMED,
        openers=("[TOOL_CALLS]",),
        name_ends=("[ARGS]", "[CALL_ID]"),
        markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        signs=(("[TOOL_CALLS]",),),
        writings=(
            Writing(  # since its tokenizer's version 11
                before_name="[TOOL_CALLS]",
                after_name="[ARGS]",
                after_arguments="",
                between="",
            ),
            Writing(
                begin="[TOOL_CALLS][",
                before_name='{"name": "',
                after_name='", "arguments": ',
                after_arguments="}",
                between=", ",
                end="]",
            ),
        ),
        short_ids=True,
    ),
    ToolFormat(
        name="llama3_json",
        syntax=Syntax.OBJECTS,
        openers=("<|python_tag|>",),
        bare="{",
        between=";",
        markers=("<|python_tag|>",),
        signs=(("dictionary of argument name",),),
        writings=(
            Writing(
                before_name='{"name": "',
                after_name='", "parameters": ',
                after_arguments="}",
                between="; ",
            ),
        ),
    ),
    ToolFormat(
        name="pythonic",
        syntax=Syntax.PYTHONIC,
        openers=("<|python_start|>",),
        bare="[",
        closers=("<|python_end|>",),
        markers=("<|python_start|>", "<|python_end|>"),
        signs=(("[func_name1(",), ("[func1(",), ("<|python_start|>",)),
        writings=(),  # the values of Python have no JSON schema in xgrammar
    ),
    ToolFormat(
        name="hermes",
        syntax=Syntax.OBJECTS,
        openers=("<tool_call>",),
        closers=("</tool_call>",),
        markers=("<tool_call>", "</tool_call>"),
        signs=(("<tool_call>", "name", "arguments"),),
        writings=(
            Writing(
                before_name='<tool_call>\n{"name": "',
                after_name='", "arguments": ',
                after_arguments="}\n</tool_call>",
                between="\n",
            ),
        ),
    ),
)

FOREIGN = ("<arg_key>", "｜DSML｜")  # of formats that are not here, but look like some that are

_REASONING_FORMATS = (
    ReasoningFormat(
        name="gpt_oss",
        opens=("<|channel|>analysis<|message|>",),
        closes=("<|end|>",),
        markers=CHANNELS,
        signs=(("<|channel|>", "<|message|>"),),
        after_close="<|start|>assistant",
        channels=True,
    ),
    ReasoningFormat(
        name="mistral",
        opens=("[THINK]",),
        closes=("[/THINK]",),
        markers=("[THINK]", "[/THINK]"),
        signs=(("[THINK]",),),
    ),
    ReasoningFormat(
        name="granite",
        opens=("Here is my thought process:", "Here's my thought process:"),
        closes=("Here is my response:", "Here's my response:"),
        markers=(),
        signs=(("Here is my thought process:",),),
    ),
    ReasoningFormat(
        name="deepseek_r1",
        opens=("<think>",),
        closes=("</think>",),
        markers=("<think>", "</think>"),
        signs=(("</think>", "<｜Assistant｜>"),),
    ),
    ReasoningFormat(
        name="qwen3",
        opens=("<think>",),
        closes=("</think>",),
        markers=("<think>", "</think>"),
        signs=(("</think>",),),
    ),
)

_TOOL_ALIASES = {
    "openai": "gpt_oss",
    "qwen3_coder": "qwen3_xml",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
}
_REASONING_ALIASES = {"openai_gptoss": "gpt_oss"}

TOOL_FORMATS: dict[str, ToolFormat] = {row.name: row for row in _TOOL_FORMATS}
TOOL_FORMATS |= {alias: TOOL_FORMATS[name] for alias, name in _TOOL_ALIASES.items()}
REASONING_FORMATS: dict[str, ReasoningFormat] = {row.name: row for row in _REASONING_FORMATS}
REASONING_FORMATS |= {alias: REASONING_FORMATS[name] for alias, name in _REASONING_ALIASES.items()}


def detect(
    chat_template: str | None, special_tokens: Iterable[str] = ()
) -> tuple[ToolFormat | None, ReasoningFormat | None]:
    """The formats of a checkpoint, by what its chat template says and which special tokens it has.

    Without a template there is no chat, and nothing to read.
    """
    if not chat_template:
        return None, None
    known = "\n".join((chat_template, *special_tokens))
    tools = next((row for row in _TOOL_FORMATS if _shows(known, row.signs)), None)
    reasoning = next((row for row in _REASONING_FORMATS if _shows(known, row.signs)), None)
    return None if any(sign in known for sign in FOREIGN) else tools, reasoning


def _shows(known: str, signs: tuple[tuple[str, ...], ...]) -> bool:
    return any(all(sign in known for sign in group) for group in signs)
