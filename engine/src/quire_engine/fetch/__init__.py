"""How weights arrive: resolved to an immutable revision, resumed, verified, published at once.

Belongs here: sources, the choice of files, transfer, the store's layout, its lock. Does not belong here: torch,
transformers, pydantic, or anything about what a model computes: every pod starts this first, and a laptop types it.
"""
