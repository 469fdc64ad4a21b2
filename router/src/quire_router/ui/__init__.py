"""The dashboard at /ui: static files, and how they are answered.

The page holds nothing that is secret and is open to all; what it shows comes from /state and /v1, behind the keys. It is
written for browsers as they are: no framework, no build, nothing from elsewhere.
"""

from quire_router.ui.pages import Pages

__all__ = ["Pages"]
