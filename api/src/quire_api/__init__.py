"""The contract of Quire: what every part agrees on, as data.

Belongs here: option and resource types, the flags and the CRD made from them, conditions and
reasons, metric names, byte arithmetic. Does not belong here: anything that opens a file of a user,
a socket or a device, and any import but pydantic.
"""

from quire_api.deployment import API_VERSION, KIND, LLMDeployment
from quire_api.engine import EngineConfig, EngineOptions
from quire_api.errors import InvalidInput
from quire_api.status import Condition, ConditionType, DeploymentStatus, Reason

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
