"""Quire's router: one OpenAI endpoint in front of every engine.

Belongs here: who serves which model, which backend a request goes to, moving the bytes. Does not belong
here: how engines are started, and what is inside a request beyond its `model`.
"""

from quire_router.proxy import Router
from quire_router.registry import Backend, Registry, Route

__all__ = ["Backend", "Registry", "Route", "Router"]
