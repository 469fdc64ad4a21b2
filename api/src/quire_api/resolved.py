"""What a source was when it was asked: `quire fetch resolve` says it, `status.model` keeps it, engines are made of it."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError

from quire_api.base import Strict
from quire_api.footprint import DTYPE_BYTES, KEPT, Footprint

__all__ = ["ModelStatus"]


class ModelStatus(Strict):
    """The model that was found at the source, and stays until the source is another one."""

    source: str = Field(max_length=1024, description="`spec.model.source.uri` as it was when it was asked.")
    include: tuple[str, ...] = Field((), max_length=32, description="`spec.model.source.include` as it was then.")
    revision: str = Field(
        min_length=1, max_length=128, description="What it meant then; engines fetch this and no other."
    )
    bytes: int = Field(0, ge=0, description="Size of the files to fetch.")
    parameters: int = Field(0, ge=0, description="Numbers that the engine computes with; 0: not known.")
    dtype: str = Field("", max_length=32, description="Their format in the checkpoint.")
    quantization: str = Field(
        "",
        max_length=32,
        description="The method by which the checkpoint is quantized; empty: by none.",
        examples=["awq"],
    )
    kv_bytes_per_token: int = Field(
        0, ge=0, description="KV cache for one token in that format; 0: not known.", examples=[147456]
    )

    @classmethod
    def from_answer(cls, source: str, include: tuple[str, ...], answer: str) -> Self | None:
        """Of the line that `quire fetch resolve` prints; None when that is none."""
        try:
            told = json.loads(answer)
            known = {
                name: told[name]
                for name in ("parameters", "dtype", "quantization", "kvBytesPerToken")
                if told.get(name)
            }
            return cls.model_validate(
                {"source": source, "include": include, "revision": told["revision"], "bytes": told["bytes"], **known},
                by_alias=True,
            )
        except (ValueError, ValidationError, KeyError, TypeError, AttributeError):
            return None

    @classmethod
    def from_kept(cls, kept: Mapping[str, Any]) -> Self | None:
        """What `kept` made of an answer; None when it is none that we know."""
        try:
            return cls.model_validate_json(json.dumps(kept))
        except ValidationError:
            return None

    @property
    def kept(self) -> dict[str, Any]:
        """To be kept beside the template that is made of it."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    @property
    def footprint(self) -> Footprint | None:
        """None where the sizes are not known."""
        width = DTYPE_BYTES.get(self.dtype)
        if width is None or not self.parameters:
            return None
        values = self.kv_bytes_per_token // width
        return Footprint(
            parameters=self.parameters,
            kv_values_per_token=values,
            dtype=self.dtype,
            quantized_bytes=self.bytes if self.quantization in KEPT else None,
        )
