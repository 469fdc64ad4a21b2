"""The engine's command line, the same for a pod and for a process."""

from quire_api.deployment import LLMDeployment, seconds
from quire_api.engine import EngineConfig
from quire_api.flags import to_argv

__all__ = ["engine_argv"]


def engine_argv(deployment: LLMDeployment, **place: object) -> list[str]:
    """`quire serve` with what the user set; `place` is what the backend adds (device, address, where the model is)."""
    spec = deployment.spec
    ranks = {
        f"{name}_parallel_size": count
        for name, count in spec.parallelism.model_dump(exclude={"nodes"}).items()
        if count > 1
    }
    options: dict[str, object] = {
        **spec.engine.model_dump(exclude_unset=True),
        "model": spec.model.source.uri,
        "served_model_name": deployment.model_names,
        "shutdown_timeout": float(seconds(spec.drain.timeout)),
        **ranks,
        **place,
    }
    if spec.weights.verify == "Always":
        options["verify_weights"] = "always"
    return ["quire", "serve", *to_argv(EngineConfig.model_validate(options))]
