"""What is said of a pod that fails: the reason, whether waiting helps, and the fix."""

from dataclasses import replace

import pytest

from quire_api.reasons import REASONS, ConditionType, Reason
from quire_operator.planner.failures import EXIT_CODES, PASSING, lasting, passing, refusal, told
from quire_operator.planner.observed import Failure

NO_SECRET = Failure(cause="CreateContainerConfigError", message='secret "hf-token" not found', container="weights")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Failure(exit_code=10, message="no model at /x"), Reason.MODEL_NOT_FOUND),
        (Failure(exit_code=11, message="a KV cache of ..."), Reason.OUT_OF_MEMORY),
        (Failure(exit_code=137, message="", cause="OOMKilled"), Reason.OUT_OF_MEMORY),
        (Failure(exit_code=137, message="", cause="OOMKilled", container="sidecar"), Reason.OUT_OF_MEMORY),
        (Failure(exit_code=21, message="ModelAccessDenied: gated", container="weights"), Reason.MODEL_ACCESS_DENIED),
        (Failure(exit_code=22, message="InsufficientStorage: 3 GiB", container="weights"), Reason.INSUFFICIENT_STORAGE),
        (Failure(message="denied", cause="ImagePullBackOff"), Reason.IMAGE_PULL_DENIED),
        (NO_SECRET, Reason.REFERENCE_NOT_FOUND),
        (replace(NO_SECRET, message='configmap "ca" not found'), Reason.REFERENCE_NOT_FOUND),
        (replace(NO_SECRET, message="couldn't find key HF_TOKEN in Secret default/x"), Reason.REFERENCE_NOT_FOUND),
        (replace(NO_SECRET, message="container has runAsNonRoot and image will run as root"), Reason.IMAGE_UNUSABLE),
        (Failure(message="no command specified", cause="CreateContainerError"), Reason.IMAGE_UNUSABLE),
        (
            Failure(message='exec "quire": executable file not found in $PATH', exit_code=128, cause="StartError"),
            Reason.IMAGE_UNUSABLE,
        ),
    ],
)
def test_what_only_somebody_outside_can_mend_has_a_reason(failure: Failure, reason: Reason) -> None:
    assert lasting(failure) is reason
    assert ConditionType.STALLED in REASONS[reason].conditions


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Failure(exit_code=1, message="boom"), Reason.RESTARTING),
        (Failure(exit_code=137, message=""), Reason.RESTARTING),
        (Failure(exit_code=15, message="the engine process has not answered for 6.0 s: it hangs"), Reason.ENGINE_HUNG),
        (Failure(cause="Unresponsive", message="it answered nothing"), Reason.ENGINE_HUNG),
        (Failure(exit_code=24, message="no answer", container="weights"), Reason.SOURCE_UNREACHABLE),
        (Failure(exit_code=25, message="SIGTERM", container="weights"), Reason.INTERRUPTED),
        (Failure(exit_code=10, message="mine", container="sidecar"), Reason.RESTARTING),
        (
            Failure(message="error unpacking image: no space left on device", cause="CreateContainerError"),
            Reason.RESTARTING,
        ),
        (Failure(exit_code=24, message="mine", container="sidecar"), Reason.RESTARTING),
    ],
)
def test_what_starting_again_may_cure_is_at_work(failure: Failure, reason: Reason) -> None:
    assert lasting(failure) is None
    assert passing(failure) is reason
    assert ConditionType.RECONCILING in REASONS[reason].conditions


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1', Reason.QUOTA_EXCEEDED),
        (
            'pods "x" is forbidden: error looking up service account a/b: serviceaccount "b" not found',
            Reason.REFERENCE_NOT_FOUND,
        ),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', Reason.POD_REFUSED),
        ('admission webhook "policy" denied the request', Reason.POD_REFUSED),
    ],
)
def test_why_the_api_server_will_have_no_pod(message: str, reason: Reason) -> None:
    assert refusal(message) is reason


def test_who_has_words_of_its_own_is_quoted_and_the_machines_get_the_fix() -> None:
    engine = Failure(message="no model at /x: there is no such folder", exit_code=10, cause="Error")
    killed = Failure(message="", exit_code=137, cause="OOMKilled")

    assert told(engine, Reason.MODEL_NOT_FOUND) == "no model at /x: there is no such folder (exit code 10)"
    assert told(killed, Reason.OUT_OF_MEMORY).startswith("OOMKilled (exit code 137). Lower `kvCacheGiB`")
    assert told(NO_SECRET, Reason.REFERENCE_NOT_FOUND).startswith(
        'container weights: secret "hf-token" not found. Create it, or correct its name'
    )


def test_no_exit_code_means_two_things() -> None:
    assert not set(EXIT_CODES) & set(PASSING)
