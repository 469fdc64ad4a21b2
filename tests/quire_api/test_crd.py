"""The CRD, as far as it can be judged without an API server; `make e2e` installs it on one."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from quire_api.crd import custom_resource_definition
from quire_api.reasons import REASONS, Reason
from quire_api.schema import structural

SCHEMA = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def test_every_field_is_described() -> None:
    bare = [
        path
        for path, node in nodes(SCHEMA)
        if path.startswith((".spec", ".status")) and not path.endswith("[]") and not node.get("description")
    ]

    assert bare == []


def test_every_string_and_list_is_bounded() -> None:
    """Unbounded ones make the API server refuse the rules for their cost."""
    unbounded = [
        path
        for path, node in nodes(SCHEMA)
        if path.startswith(".spec")
        and (
            (node.get("type") == "string" and not {"enum", "maxLength"} & set(node))
            or (node.get("type") == "array" and "maxItems" not in node)
        )
    ]

    assert unbounded == []


def test_no_enum_reads_as_a_yaml_boolean() -> None:
    spec = SCHEMA["properties"]["spec"]
    words = [choice for _, node in nodes(spec) for choice in node.get("enum", ()) if isinstance(choice, str)]

    assert not {"on", "off", "yes", "no", "y", "n", "true", "false"} & {word.lower() for word in words}


def test_engine_options_have_no_defaults_in_the_crd() -> None:
    """A default would be frozen into stored objects; the engine applies its own."""
    assert [
        name
        for name, node in SCHEMA["properties"]["spec"]["properties"]["engine"]["properties"].items()
        if "default" in node
    ] == []


def test_replicas_has_a_default_for_the_scale_subresource() -> None:
    assert SCHEMA["properties"]["spec"]["properties"]["replicas"]["default"] == 1


def test_a_union_is_refused_by_the_generator() -> None:
    class Odd(BaseModel):
        value: int | str

    with pytest.raises(ValueError, match="union"):
        structural(Odd)


def test_an_exclusive_bound_is_refused_by_the_generator() -> None:
    from pydantic import Field

    class Odd(BaseModel):
        value: int = Field(gt=1)

    with pytest.raises(ValueError, match="exclusiveMinimum"):
        structural(Odd)


def test_every_reason_is_documented() -> None:
    assert set(REASONS) == set(Reason)
    assert all(doc.meaning and doc.fix and doc.conditions for doc in REASONS.values())
