"""Quire's operator: keeps engines as the LLMDeployment says, on a cluster (kopf) or on one machine.

`planner` and `render` are pure and never import kopf, kubernetes or asyncio; `backends` are the two shells
that carry plans out. Nothing here imports the engine, and torch is never loaded.
"""

__all__: list[str] = []
