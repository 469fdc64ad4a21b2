"""The CustomResourceDefinition of LLMDeployment, made from the types. Pure."""

from typing import Any

from quire_api.deployment import GROUP, KIND, PLURAL, VERSION, LLMDeployment, Spec
from quire_api.schema import structural
from quire_api.status import DeploymentStatus

__all__ = ["COLUMNS", "custom_resource_definition"]

_READY = '.status.conditions[?(@.type=="Ready")]'

COLUMNS: tuple[tuple[str, str, str, int], ...] = (  # name, type, path, priority (1 shows with -o wide)
    ("Model", "string", ".status.modelName", 0),
    ("Ready", "string", f"{_READY}.status", 0),
    ("Replicas", "string", ".status.serving", 0),
    ("Reason", "string", f"{_READY}.reason", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("URL", "string", ".status.url", 1),
    ("Message", "string", f"{_READY}.message", 1),
)


def custom_resource_definition() -> dict[str, Any]:
    schema = {
        "type": "object",
        "description": "One served model: what to serve, on what, how many times.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(Spec),
            "status": structural(DeploymentStatus),
        },
        "x-kubernetes-validations": [{"rule": rule.cel, "message": rule.message} for rule in LLMDeployment.rules],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["llmd"],
                "categories": ["quire"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                }
            ],
        },
    }
