"""What grammars may have a model write."""

from collections.abc import Mapping

from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["writable"]


def writable(tokenizer: Tokenizer | None, vocabulary: int) -> list[bytes]:
    """What a grammar may have each token write: its text, and of special tokens those that mark calls and reasoning."""
    if tokenizer is None:
        return [b""] * vocabulary
    tables: list[Mapping[str, ToolFormat | ReasoningFormat]] = [TOOL_FORMATS, REASONING_FORMATS]
    markers = {name for table in tables for row in table.values() for name in row.markers}
    shown = frozenset(token for name in markers if (token := tokenizer.id_of(name)) is not None)
    return tokenizer.text_table(skip_special=True, shown=shown)
