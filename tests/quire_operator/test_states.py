"""Every state in which a resource can be, as tools of others read it. e2e asks the tools themselves about the same ones."""

import pytest
from fakes.kstatus import kstatus
from fakes.states import State, states

STATES = list(states())
REASONS = {
    "fresh": "NotObserved", "loading": "Starting", "rolling": "RollingOut", "no place": "Unschedulable", "more are wanted": "Starting",
    "ending again and again": "CrashLoop", "a write is refused": "WriteRefused", "suspended, engines still there": "Scaling",
    "ready": "Serving", "an engine less than wanted": "Serving", "at zero": "ScaledToZero", "scaled by others": "Serving",
    "a newer template waits": "Serving", "an HPA without metrics": "Serving", "paused at rest": "Serving", "suspended": "Suspended", "paused, and changes wait": "Paused",
    "rolled back": "RolledBack", "deadline missed": "ProgressDeadlineExceeded", "image denied": "ImagePullDenied",
    "quota exceeded": "QuotaExceeded", "invalid": "InvalidSpec", "name conflict": "NameConflict", "resolving": "Resolving",
    "source unreachable": "SourceUnreachable", "model access denied": "ModelAccessDenied", "model not found": "ModelNotFound",
    "does not fit": "DoesNotFit", "nobody may ask": "QuotaExceeded",
}  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_kstatus_reads_each_state_as_our_conditions_say_it(state: State) -> None:
    assert kstatus(state.resource) == state.kstatus


def test_the_states_are_those_that_they_are_called() -> None:
    reasons = {state.name: state.reason for state in STATES}

    assert {name: reasons[name] for name in REASONS} == REASONS
