"""The contract of Quire: what every part agrees on, as data.

Belongs here: option and resource types, the flags and the CRD made from them, conditions and
reasons, metric names, byte arithmetic. Does not belong here: anything that opens a file of a user,
a socket or a device, and any import but pydantic. Nothing is imported until it is asked for: `quire fetch`
starts in every pod, and needs none of the types.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire_api.deployment import API_VERSION, KIND, LLMDeployment
    from quire_api.engine import EngineConfig, EngineOptions
    from quire_api.errors import InvalidInput
    from quire_api.reasons import ConditionType, Reason
    from quire_api.status import Condition, DeploymentStatus

__all__ = [
    "API_VERSION",
    "KIND",
    "Condition",
    "ConditionType",
    "DeploymentStatus",
    "EngineConfig",
    "EngineOptions",
    "InvalidInput",
    "LLMDeployment",
    "Reason",
]

_HOME = {
    **dict.fromkeys(("API_VERSION", "KIND", "LLMDeployment"), "deployment"),
    **dict.fromkeys(("EngineConfig", "EngineOptions"), "engine"),
    **dict.fromkeys(("InvalidInput",), "errors"),
    **dict.fromkeys(("ConditionType", "Reason"), "reasons"),
    **dict.fromkeys(("Condition", "DeploymentStatus"), "status"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
