"""Quire's router: one OpenAI endpoint in front of every engine.

Belongs here: who serves which model, which engine a request goes to and when it waits, moving the bytes. Does not belong
here: how engines are started, and what is inside a request beyond what `peek` reads.
"""

from quire_router.declared import declared
from quire_router.registry import Endpoint, Model, Registry, Scaling, Strategy, Weigh
from quire_router.router import Router
from quire_router.scene import Demand, Wake

__all__ = ["Demand", "Endpoint", "Model", "Registry", "Router", "Scaling", "Strategy", "Wake", "Weigh", "declared"]
