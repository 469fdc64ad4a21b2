"""The frame that every object has which the operator makes: named after the resource, labelled, and owned by it."""

from typing import Any

from quire_api.deployment import API_VERSION, KIND, LLMDeployment
from quire_operator.render.names import labels

__all__ = ["Manifest", "owned"]

Manifest = dict[str, Any]


def owned(deployment: LLMDeployment, api_version: str, kind: str, name: str | None = None, **parts: Any) -> Manifest:
    """The API server deletes it with its owner."""
    owner, uid = deployment.metadata.name, deployment.metadata.uid
    metadata: Manifest = {
        "name": name or owner,
        "namespace": deployment.metadata.namespace,
        "labels": labels(deployment),
    }
    if uid:  # none yet in `quire plan`
        reference = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": owner,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        metadata["ownerReferences"] = [reference]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}
