"""Quire's inference engine.

Nothing is imported here: `quire_engine.core`, `quire_engine.cli` and the weights' fetcher must start
without torch (a contract test watches it).
"""

__all__: list[str] = []
