"""The closed set of reasons that conditions and scaling give: what each means, and what to do.

docs/reference/conditions.md is made from `REASONS`.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["REASONS", "SCALE_REASONS", "ConditionType", "Reason", "ReasonDoc", "ScaleReason"]


class ConditionType(StrEnum):
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AUTOSCALING_ACTIVE = "AutoscalingActive"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    UPGRADE_WAITING = "UpgradeWaiting"


class Reason(StrEnum):
    # Ready
    SERVING = "Serving"
    SCALED_TO_ZERO = "ScaledToZero"
    SUSPENDED = "Suspended"
    NOT_OBSERVED = "NotObserved"
    # Ready=False, Reconciling
    RESOLVING = "Resolving"
    STARTING = "Starting"
    ROLLING_OUT = "RollingOut"
    SCALING = "Scaling"
    RESTARTING = "Restarting"
    ENGINE_HUNG = "EngineHung"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    INTERRUPTED = "Interrupted"
    CRASH_LOOP = "CrashLoop"
    UNSCHEDULABLE = "Unschedulable"
    WRITE_REFUSED = "WriteRefused"
    # Stalled (and Ready=False with the same reason)
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    DOES_NOT_FIT = "DoesNotFit"
    INSUFFICIENT_STORAGE = "InsufficientStorage"
    WEIGHTS_CORRUPT = "WeightsCorrupt"
    OUT_OF_MEMORY = "OutOfMemory"
    ENGINE_REJECTED_CONFIG = "EngineRejectedConfig"
    DEVICE_UNAVAILABLE = "DeviceUnavailable"
    IMAGE_PULL_DENIED = "ImagePullDenied"
    IMAGE_UNUSABLE = "ImageUnusable"
    REFERENCE_NOT_FOUND = "ReferenceNotFound"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_REFUSED = "PodRefused"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ROLLED_BACK = "RolledBack"
    PAUSED = "Paused"
    # Available
    ENGINES_SERVE = "EnginesServe"
    NO_ENGINE_SERVES = "NoEngineServes"
    # Progressing
    TERMINATING_FIRST = "TerminatingFirst"
    # Degraded
    REPLICAS_MISSING = "ReplicasMissing"
    # UpgradeWaiting
    NEWER_TEMPLATE = "NewerTemplate"
    # AutoscalingActive
    FOLLOWING_DEMAND = "FollowingDemand"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    SCALED_BY_OTHERS = "ScaledByOthers"
    SCALED_BY_HPA = "ScaledByHPA"
    HPA_NOT_ACTIVE = "HPANotActive"


class ScaleReason(StrEnum):
    """Why the autoscaler wants as many engines as it does."""

    STEADY = "Steady"
    DEMAND = "DemandAboveCapacity"
    PANIC = "DemandDoubled"
    GROWTH = "DemandGrows"
    WAITING = "WaitingAboveTarget"
    KV_CACHE = "KvCacheAboveTarget"
    PREEMPTIONS = "Preemptions"
    TTFT = "FirstTokensLate"
    LESS_DEMAND = "DemandBelowCapacity"
    AT_MAXIMUM = "AtMaximum"
    AT_MINIMUM = "AtMinimum"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    IDLE = "Idle"
    AT_ZERO = "AtZero"
    WOKEN = "Woken"


@dataclass(frozen=True, slots=True)
class ReasonDoc:
    conditions: tuple[ConditionType, ...]
    meaning: str
    fix: str  # what the reader does about it


_READY, _RECONCILING, _STALLED = ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED
_AUTOSCALING, _AVAILABLE = ConditionType.AUTOSCALING_ACTIVE, ConditionType.AVAILABLE
_PROGRESSING, _DEGRADED = ConditionType.PROGRESSING, ConditionType.DEGRADED

REASONS: dict[Reason, ReasonDoc] = {
    Reason.SERVING: ReasonDoc(
        (_READY,),
        "All wanted replicas serve the wanted revision; or they did, and `Degraded` or `AutoscalingActive` says what has changed since.",
        "Nothing to do.",
    ),
    Reason.SUSPENDED: ReasonDoc(
        (_READY, _AVAILABLE), "`spec.suspend` is true: no engine runs.", "Set `spec.suspend: false` to serve."
    ),
    Reason.SCALED_TO_ZERO: ReasonDoc(
        (_READY, _AVAILABLE),
        "No replica is wanted, and none runs.",
        "Set `spec.replicas`, or `kubectl scale`, to serve.",
    ),
    Reason.NOT_OBSERVED: ReasonDoc(
        (_READY, _RECONCILING),
        "The operator has seen the resource and has not yet looked at what runs.",
        "Wait a second; if it stays, look at the operator's log.",
    ),
    Reason.RESOLVING: ReasonDoc(
        (_READY, _RECONCILING),
        "The source of the weights is asked what it has, by a Job; engines of an older source serve on.",
        "Wait; if it stays, look at the Job: `kubectl describe job -l quire.dev/llmdeployment=NAME`.",
    ),
    Reason.STARTING: ReasonDoc(
        (_READY, _RECONCILING),
        "Engines are starting: scheduling, pulling the image, loading weights.",
        "Wait, or look at the pod's events.",
    ),
    Reason.ROLLING_OUT: ReasonDoc(
        (_READY, _RECONCILING, _PROGRESSING),
        "Engines of a revision are being started, and those of an older one replaced.",
        "Wait; the old ones serve until the new ones do.",
    ),
    Reason.SCALING: ReasonDoc((_READY, _RECONCILING), "The number of engines is changing.", "Wait."),
    Reason.RESTARTING: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "An engine ended and is being started again.",
        "If it repeats, read the engine's log; the message has its last words.",
    ),
    Reason.ENGINE_HUNG: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "An engine gave no sign of life for too long, was ended, and is started again (exit code 15).",
        "If it repeats, look at the node: its GPU (`nvidia-smi`, `dmesg`), whether it swaps.",
    ),
    Reason.SOURCE_UNREACHABLE: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "The source of the weights does not answer, or only with errors (exit code 24).",
        "Wait, or mend the network, the proxy or the endpoint; what arrived is kept.",
    ),
    Reason.INTERRUPTED: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "A signal ended the fetch of the weights (exit code 25); what arrived is kept.",
        "Wait: it goes on where it was.",
    ),
    Reason.CRASH_LOOP: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "An engine ends again and again, for no reason that it has a word for.",
        "Look at its log: `kubectl logs -p POD`; undo the last edit if it began with it.",
    ),
    Reason.UNSCHEDULABLE: ReasonDoc(
        (_READY, _RECONCILING, _DEGRADED),
        "No node has room for an engine; the message has the scheduler's words.",
        "Free or add what the message names: a GPU, memory, a node without that taint. It is tried again by itself.",
    ),
    Reason.WRITE_REFUSED: ReasonDoc(
        (_READY, _RECONCILING),
        "The API server refused an object: a quota, an admission webhook, a missing right, an outage.",
        "Mend what the message names; it is tried again by itself.",
    ),
    Reason.INVALID_SPEC: ReasonDoc(
        (_READY, _STALLED), "The spec is not valid; nothing was changed.", "Mend the field which the message names."
    ),
    Reason.NAME_CONFLICT: ReasonDoc(
        (_READY, _STALLED),
        "An object of the needed name exists and belongs to somebody else.",
        "Delete or rename that object, or give the LLMDeployment another name.",
    ),
    Reason.MODEL_NOT_FOUND: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "There is no usable model at the source (exit code 10 of the engine, 20 of the fetch).",
        "Correct `spec.model.source.uri`.",
    ),
    Reason.MODEL_ACCESS_DENIED: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The source wants a token or key, or refuses the one it got (exit code 21).",
        "Correct the Secret of `spec.model.source.secretRef`; of a gated model accept the terms on its page. It is tried again by itself.",
    ),
    Reason.DOES_NOT_FIT: ReasonDoc(
        (_READY, _STALLED),
        "Weights and KV cache need more memory than one device, or the memory limit of the container, has; nothing was changed.",
        "Lower `maxModelLen` or `kvCacheGiB`, take a smaller model, or another `accelerator.profile`; the message has the numbers.",
    ),
    Reason.INSUFFICIENT_STORAGE: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The weights do not fit where they are fetched to (exit code 22).",
        "Make room (`quire fetch gc`), or give `spec.weights.cache` a larger volume.",
    ),
    Reason.WEIGHTS_CORRUPT: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "What the source sends, or what is on the volume, is not what it should be (exit code 23).",
        "If the source is at fault, mend it; else delete the model's folder on the volume. It is tried again by itself.",
    ),
    Reason.OUT_OF_MEMORY: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The weights or the KV cache do not fit, or the kernel ended the engine for memory (exit code 11, OOMKilled).",
        "Lower `kvCacheGiB`, `maxModelLen` or `maxNumSeqs`, or use a machine with more memory.",
    ),
    Reason.ENGINE_REJECTED_CONFIG: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The engine refused an option (exit code 12).",
        "Correct the option which the message names.",
    ),
    Reason.DEVICE_UNAVAILABLE: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The engine found no device of the profile (exit code 13).",
        "Set `accelerator.profile: cpu`, or use a machine with the device.",
    ),
    Reason.IMAGE_PULL_DENIED: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The image of the engine cannot be pulled.",
        "Correct `spec.image`, or name a pull secret of this namespace in `spec.podTemplate.spec.imagePullSecrets`.",
    ),
    Reason.IMAGE_UNUSABLE: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The image is there, but no container can be made of it: it has no `quire`, or wants to be root.",
        "Correct `spec.image`: Dockerfile.engine makes such an image.",
    ),
    Reason.REFERENCE_NOT_FOUND: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The pod names a Secret, a ConfigMap, a key of one, or a ServiceAccount which does not exist in its namespace.",
        "Create it, or correct its name in `spec.model.source.secretRef` or `spec.podTemplate`. It is tried again by itself.",
    ),
    Reason.QUOTA_EXCEEDED: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The namespace's ResourceQuota has no room for the pods.",
        "Raise the quota, lower `spec.replicas`, or give room elsewhere in the namespace. It is tried again by itself.",
    ),
    Reason.POD_REFUSED: ReasonDoc(
        (_READY, _STALLED, _DEGRADED),
        "The API server will not have the pods: Pod Security, a LimitRange, an admission webhook.",
        "Mend what the message names, most often in `spec.podTemplate`. It is tried again by itself.",
    ),
    Reason.PROGRESS_DEADLINE_EXCEEDED: ReasonDoc(
        (_READY, _STALLED, _PROGRESSING),
        "A roll-out made no progress for `rollout.progressDeadline`, and there is no revision to roll back to, or `autoRollback` is false.",
        "Look at the pods: `kubectl describe pod -l quire.dev/llmdeployment=NAME`.",
    ),
    Reason.ROLLED_BACK: ReasonDoc(
        (_READY, _STALLED, _PROGRESSING),
        "The revision which the spec asks for missed its deadline; the last good one serves.",
        "Mend what the message names, and edit the spec: any change but one of `replicas`, `suspend` or `paused` tries again.",
    ),
    Reason.PAUSED: ReasonDoc(
        (_READY, _STALLED), "`spec.paused` is true, and changes wait.", "Set `spec.paused: false` to let them through."
    ),
    Reason.ENGINES_SERVE: ReasonDoc((_AVAILABLE,), "Engines serve, of whatever revision.", "Nothing to do."),
    Reason.NO_ENGINE_SERVES: ReasonDoc(
        (_AVAILABLE,), "No engine serves; requests wait or fail.", "See why in the condition `Ready`."
    ),
    Reason.TERMINATING_FIRST: ReasonDoc(
        (_PROGRESSING,),
        "There is no room for one engine more, so an old one ends before a new one starts.",
        "Wait; to avoid it, leave room for one engine more.",
    ),
    Reason.REPLICAS_MISSING: ReasonDoc(
        (_DEGRADED,), "Fewer engines serve than are wanted.", "Wait; if it stays, look at the pods that are not ready."
    ),
    Reason.NEWER_TEMPLATE: ReasonDoc(
        (ConditionType.UPGRADE_WAITING,),
        "This operator would make other pods of the same spec than the ones that run; it leaves them alone.",
        "Annotate the resource with `quire.dev/upgrade=true`, or edit the spec.",
    ),
    Reason.FOLLOWING_DEMAND: ReasonDoc(
        (_AUTOSCALING,),
        "The operator decides how many engines there are; `status.autoscaling.history` says why. `spec.replicas` is ignored.",
        "Nothing to do; `mode: Manual` gives you the number back.",
    ),
    Reason.METRICS_UNAVAILABLE: ReasonDoc(
        (_AUTOSCALING,),
        "Engines that are ready do not say what they have to do: their number stays, and does not shrink, until they do. Or no router does: nothing "
        "goes to zero, and nothing at zero is woken.",
        "Let the operator reach the engines' port 8000 and the routers' port 8081; the message says which does not answer.",
    ),
    Reason.SCALED_BY_OTHERS: ReasonDoc(
        (_AUTOSCALING,),
        "`mode: External`: whoever writes the resource's `/scale` decides.",
        "Nothing to do here; look at your autoscaler.",
    ),
    Reason.SCALED_BY_HPA: ReasonDoc(
        (_AUTOSCALING,),
        "`mode: HPA`: the HorizontalPodAutoscaler of the resource's name decides, and writes `spec.replicas`.",
        "Nothing to do; `kubectl describe hpa NAME` says what it sees.",
    ),
    Reason.HPA_NOT_ACTIVE: ReasonDoc(
        (_AUTOSCALING,),
        "`mode: HPA`: the HorizontalPodAutoscaler does not scale, most often for want of metrics; their number stays. The message has its words.",
        "Let the cluster's metrics API (custom.metrics.k8s.io) have the engines' metrics, by prometheus-adapter for one; or take `mode: Builtin`, "
        "which needs none. With `spec.replicas: 0` it stands still: `kubectl scale` to 1.",
    ),
}

SCALE_REASONS: dict[ScaleReason, str] = {
    ScaleReason.STEADY: "As many as are needed.",
    ScaleReason.DEMAND: "What came in the stable window needs more engines than there are, each 85 % full.",
    ScaleReason.PANIC: "What came in the panic window is `panicFactor` times what the engines can do.",
    ScaleReason.GROWTH: "Demand has grown for a while, and will need more engines by the time one could be loaded.",
    ScaleReason.WAITING: "More than `waitingPerReplica` requests wait for each engine that serves, and they do not become fewer.",
    ScaleReason.KV_CACHE: "The KV cache is fuller than `kvCacheUtilization`.",
    ScaleReason.PREEMPTIONS: "Requests lost their place for want of KV cache.",
    ScaleReason.TTFT: "First tokens took longer than `ttftP95`, so that an engine counts for less than it carries.",
    ScaleReason.LESS_DEMAND: "Fewer engines would have done for all of `scaleDownDelay`, each 70 % full; at most half go at once.",
    ScaleReason.AT_MAXIMUM: "More are needed than `max`.",
    ScaleReason.AT_MINIMUM: "Fewer are needed than `min`.",
    ScaleReason.METRICS_UNAVAILABLE: "Engines that are ready do not say what they have to do: their number stays.",
    ScaleReason.IDLE: "There was no request for `idleAfter`.",
    ScaleReason.AT_ZERO: "None runs, and nobody asks.",
    ScaleReason.WOKEN: "None ran, and a request came.",
}
