"""Mode HPA: a HorizontalPodAutoscaler that writes the resource's `/scale`, as the operator then copies it to the engines.

It asks the metrics API of the cluster (custom.metrics.k8s.io) for what each pod exports, by the names of the engine, which is
what prometheus-adapter serves without a rule of its own. Whoever wants other metrics has an autoscaler of their own: mode External.
"""

from quire_api.deployment import API_VERSION, KIND, LLMDeployment, seconds
from quire_operator.render.objects import Manifest, owned

__all__ = ["autoscaler"]

KV_USAGE, WAITING = "vllm:kv_cache_usage_perc", "vllm:num_requests_waiting"
DOWN_PERCENT, DOWN_PERIOD_S = 50, 60


def autoscaler(deployment: LLMDeployment) -> tuple[Manifest, ...]:
    """None of it in other modes, so that what was made before is deleted."""
    spec = deployment.spec.autoscaling
    if spec.mode != "HPA":
        return ()
    down = {
        "stabilizationWindowSeconds": seconds(spec.behavior.scale_down_delay),
        "policies": [{"type": "Percent", "value": DOWN_PERCENT, "periodSeconds": DOWN_PERIOD_S}],
    }
    made = owned(
        deployment,
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        spec={
            "scaleTargetRef": {"apiVersion": API_VERSION, "kind": KIND, "name": deployment.metadata.name},
            "minReplicas": spec.min,
            "maxReplicas": spec.max,
            "metrics": [
                _each_pod(KV_USAGE, f"{round(spec.targets.kv_cache_utilization * 1000)}m"),
                _each_pod(WAITING, str(spec.targets.waiting_per_replica)),
            ],
            "behavior": {"scaleDown": down},
        },
    )
    return (made,)


def _each_pod(metric: str, mean: str) -> Manifest:
    return {
        "type": "Pods",
        "pods": {"metric": {"name": metric}, "target": {"type": "AverageValue", "averageValue": mean}},
    }
