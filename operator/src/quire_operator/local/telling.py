"""What `quire up` prints: a line whenever there is something new to say. Everything goes to standard error."""

import sys

from quire_api.errors import InvalidInput
from quire_api.reasons import ConditionType
from quire_api.status import DeploymentStatus
from quire_operator.reconcile import ResourceKey

__all__ = ["Teller", "say"]


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


class Teller:
    def __init__(self, url: str) -> None:
        self._url = url
        self._said: dict[ResourceKey, tuple[str, str]] = {}
        self.served: set[ResourceKey] = set()

    def tell(self, key: ResourceKey, status: DeploymentStatus) -> None:
        ready = status.condition(ConditionType.READY)
        if ready is None or ready.status == "Unknown" or self._said.get(key) == (ready.reason, ready.message):
            return
        self._said[key] = (ready.reason, ready.message)
        say(f"{key.name}  {ready.reason}  {ready.message}")
        if ready.status == "True":
            if key not in self.served and status.ready_replicas:
                say(_try_it(self._url, status.model_name))
            self.served.add(key)

    def forget(self, key: ResourceKey) -> None:
        self._said.pop(key, None)
        self.served.discard(key)
        say(f"{key.name}  Removed  its engines finish what they have and end")

    def complain(self, error: InvalidInput) -> None:
        for problem in error.problems:
            say(f"quire up: {problem}")
        say("quire up: what runs goes on as it was; save the file again when it is mended")


def _try_it(url: str, model: str) -> str:
    body = f'{{"model": "{model}", "stream": true, "temperature": 0, "messages": [{{"role": "user", "content": "What is an LLMDeployment?"}}]}}'
    curl = f"curl -N {url}/chat/completions -H 'content-type: application/json' \\\n    -d '{body}'"
    return f"try, in another terminal:\n  quire chat {model}\n  {curl}"
