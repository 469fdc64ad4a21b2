"""The resource: what is accepted, and how the rest is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.resources import bad_resources, good, spoiled

from quire_api import InvalidInput, LLMDeployment
from quire_api.deployment import seconds

SAMPLES = sorted(Path("config/samples").glob("*.yaml"))


@pytest.mark.parametrize("case", bad_resources(), ids=lambda case: case["name"])
def test_bad_resource_is_refused_with_its_path_and_the_fix(case: dict[str, Any]) -> None:
    resource = spoiled(case["set"])

    with pytest.raises(InvalidInput) as refused:
        LLMDeployment.parse(resource)

    assert case.get("quire", case.get("says")) in str(refused.value)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample_is_valid(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        LLMDeployment.parse(document)


def test_every_mistake_is_reported_at_once() -> None:
    resource = spoiled({"spec.engine.dtype": "int4", "spec.replicas": -1, "spec.foo": 1})

    with pytest.raises(InvalidInput) as refused:
        LLMDeployment.parse(resource)

    assert len(refused.value.problems) == 3


def test_metadata_of_the_api_server_is_not_refused() -> None:
    resource = good(
        metadata__annotations={"a": "b"}, metadata__managedFields=[], metadata__uid="u", metadata__generation=3
    )

    deployment = LLMDeployment.parse(resource)

    assert (deployment.metadata.uid, deployment.metadata.generation) == ("u", 3)


def test_model_name_defaults_to_the_name_of_the_resource() -> None:
    unnamed = LLMDeployment.parse(good(spec__model__name=None, spec__model__aliases=["chat"]))
    named = LLMDeployment.parse(good(spec__model__name="a/b:c"))

    assert unnamed.model_names == ("good", "chat")
    assert named.model_names == ("a/b:c",)


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("15m", 900), ("1h", 3600)])
def test_durations_are_seconds(text: str, expected: int) -> None:
    assert seconds(text) == expected
