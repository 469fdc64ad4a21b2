"""The world as a cluster tells it: resources and EndpointSlices, watched, become the router's registry.

Belongs here: what knows Kubernetes. Does not belong here: kopf, and anything that writes; the router only reads.
"""

__all__: list[str] = []
