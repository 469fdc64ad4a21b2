"""A checkpoint's tokenizer, from tokenizer.json alone.

Besides encoding it yields the table `token_bytes`: what each token adds to the text, as bytes. Streams are
decoded from it and stop strings are matched on it, so that no token border can split a character.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from quire_engine.errors import WeightsFailure

__all__ = ["Tokenizer"]


class Tokenizer:
    def __init__(self, folder: Path, vocabulary: int) -> None:
        """`vocabulary` is the model's: it may have more rows than there are tokens, or fewer."""
        folder = folder.parent if folder.is_file() else folder  # a GGUF file, whose own tokenizer is not read
        path = folder / "tokenizer.json"
        if not path.exists():
            raise WeightsFailure(
                f"{folder} has no tokenizer.json: put the one of the model there, and its tokenizer_config.json "
                "(of a GGUF file, those of the model that it was made from)"
            )
        try:
            self._fast = FastTokenizer.from_file(str(path))
            self._fast.no_truncation()
            self._fast.no_padding()
            declared = json.loads(path.read_text())
        except Exception as error:  # the library raises bare Exception for whatever is wrong with the file
            raise WeightsFailure(f"{path} cannot be read: {error}") from None
        self.config = _read_config(folder)
        self.special_ids = frozenset(token["id"] for token in declared.get("added_tokens", ()) if token["special"])
        self.token_bytes: list[bytes] = self._token_bytes(declared, vocabulary)
        self._tables: dict[frozenset[int], list[bytes]] = {}
        self._special_bytes = {
            token["id"]: token["content"].encode() for token in declared.get("added_tokens", ()) if token["special"]
        }

    @property
    def special_tokens(self) -> list[str]:
        return [name.decode() for name in self._special_bytes.values()]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # A batch of one: it takes half the time, and leaves Python's lock to other threads meanwhile.
        ids: list[int] = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", "replace")

    def text_table(self, skip_special: bool, shown: frozenset[int] = frozenset()) -> list[bytes]:
        """What each token shows: `token_bytes`, or that with the names of special tokens, all or just those `shown`."""
        if skip_special and not shown & self.special_ids:
            return self.token_bytes
        if not skip_special:
            return self._all_bytes
        if shown not in self._tables:
            names = self._special_bytes
            self._tables[shown] = [
                names[i] if i in shown and i in names else text for i, text in enumerate(self.token_bytes)
            ]
        return self._tables[shown]

    def id_of(self, token: str) -> int | None:
        return self._fast.token_to_id(token)

    @cached_property
    def _all_bytes(self) -> list[bytes]:
        return [self._special_bytes.get(i, text) for i, text in enumerate(self.token_bytes)]

    def token_text(self, name: str) -> str:
        """A special token of tokenizer_config.json, such as `bos_token`, or nothing."""
        token = self.config.get(name)
        return str(token["content"] if isinstance(token, dict) else token or "")

    def _token_bytes(self, declared: dict[str, Any], vocabulary: int) -> list[bytes]:
        plain = _uses_byte_alphabet(declared.get("decoder") or {})
        added = {token["id"] for token in declared.get("added_tokens", ())}
        table = []
        for i in range(vocabulary):
            token = self._fast.id_to_token(i) or ""
            if i in self.special_ids:
                table.append(b"")
            elif i in added:
                table.append(token.encode())
            elif plain:
                table.append(bytes(_BYTE_OF[char] for char in token if char in _BYTE_OF))
            elif len(token) == 6 and token.startswith("<0x"):  # sentencepiece's byte fallback
                table.append(bytes([int(token[3:5], 16)]))
            else:
                table.append(token.replace("▁", " ").encode())
        return table


def _uses_byte_alphabet(decoder: dict[str, Any]) -> bool:
    return decoder.get("type") == "ByteLevel" or any(_uses_byte_alphabet(part) for part in decoder.get("decoders", ()))


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template where it is a file of its own."""
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config: dict[str, Any] = {}
    try:
        if path.exists():
            config = json.loads(path.read_text())
        if template.exists():
            config["chat_template"] = template.read_text()
    except (OSError, ValueError) as error:
        raise WeightsFailure(f"{path} cannot be read: {error}") from None
    if isinstance(templates := config.get("chat_template"), list):  # several by name
        config["chat_template"] = next((t["template"] for t in templates if t.get("name") == "default"), None)
    return config
