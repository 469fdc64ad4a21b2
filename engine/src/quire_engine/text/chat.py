"""Chat messages -> prompt, by the checkpoint's own Jinja template, in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire_engine.errors import ConfigFailure, RequestRejected
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """Renders conversations; a model without a template refuses them in one sentence."""

    def __init__(self, tokenizer: Tokenizer, source: str | None = None) -> None:
        """`source` replaces the checkpoint's own: Jinja, or the path of a file with it."""
        source = tokenizer.config.get("chat_template") if source is None else _read(source)
        self.source = source if isinstance(source, str) else None
        self._special = {
            name: tokenizer.token_text(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
        try:
            self._template = environment.from_string(source) if isinstance(source, str) else None
        except TemplateError as error:
            raise ConfigFailure(f"the model's chat template is not valid Jinja: {error}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """`more` is what the template knows besides, such as `enable_thinking`."""
        if self._template is None:
            raise RequestRejected("this model has no chat template: use /v1/completions", "messages")
        try:
            known = {"tools": tools, "add_generation_prompt": add_generation_prompt, **self._special}
            return self._template.render({**(more or {}), **known, "messages": messages})
        except Exception as error:  # a template is a program of the checkpoint: whatever it does with odd messages
            raise RequestRejected(f"the model's chat template refused the messages: {error}", "messages") from None


def _read(source: str) -> str:
    if "{" in source or "\n" in source:
        return source
    try:
        return Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFailure(
            f"--chat-template is neither Jinja nor a file that can be read: {source}: {error}"
        ) from None


def _to_json(value: Any, indent: int | None = None) -> str:
    """Without the HTML escapes of Jinja's own filter, as models were trained."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
