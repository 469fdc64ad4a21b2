"""Speaks to the `quire up` that owns a state folder. Imports little: commands answer at once."""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from quire_operator.local.state import Owner, StateFolder, default_folder

__all__ = ["STATE_HELP", "NotHere", "Quire", "Refused", "find", "model_names"]

STATE_HELP = "folder of a local Quire: its logs and control socket (default: $QUIRE_STATE, else ~/.local/state/quire)"


class NotHere(Exception):
    """No local Quire runs, or it has no such resource."""


class Refused(Exception):
    """It said no."""


class Quire:
    """The one that runs."""

    def __init__(self, folder: StateFolder, owner: Owner) -> None:
        self.folder, self.owner = folder, owner

    def pictures(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/resources")
        return found

    def picture(self, name: str) -> dict[str, Any]:
        """By the resource's name, or one of its model's names."""
        pictures = self.pictures()
        for one in pictures:
            if name == one["resource"]["metadata"]["name"]:
                return one
        for one in pictures:
            if name in model_names(one):
                return one
        known = ", ".join(one["resource"]["metadata"]["name"] for one in pictures) or "nothing"
        raise NotHere(f"{name}: there is no such LLMDeployment here; there is {known}")

    def scale(self, name: str, replicas: int) -> None:
        self._ask("POST", f"/resources/{name}/scale", {"replicas": replicas})

    def end(self, *, now: bool) -> None:
        self._ask("POST", "/down", {"now": now})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        link = _Link(self.folder.control)
        try:
            data = None if body is None else json.dumps(body)
            link.request(method, path, data, {"content-type": "application/json"})
            answer = link.getresponse()
            words = json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise NotHere(f"quire up (pid {self.owner.pid}) does not answer: {error or 'it has just ended'}") from None
        finally:
            link.close()
        if answer.status != 200:
            raise Refused(words["error"])
        return words


def find(state: Path | None, kubectl: str) -> Quire:
    """NotHere says what to do instead; `kubectl` is what does it on a cluster."""
    folder = StateFolder(state or default_folder())
    owner = folder.owner()
    if owner is None:
        raise NotHere(
            f"no quire up runs here (looked in {folder.path}): start one with `quire up -f FILE`; on a cluster: {kubectl}"
        )
    return Quire(folder, owner)


def model_names(picture: dict[str, Any]) -> list[str]:
    resource = picture["resource"]
    model = resource["spec"]["model"]
    return [model.get("name") or resource["metadata"]["name"], *model.get("aliases", ())]


class _Link(http.client.HTTPConnection):
    """Over a Unix socket; through its folder's descriptor, because a socket's path may have 107 bytes only."""

    def __init__(self, path: Path) -> None:
        super().__init__("quire", timeout=30)
        self._path = path

    def connect(self) -> None:
        descriptor = os.open(self._path.parent, os.O_PATH)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(30)
            self.sock.connect(f"/proc/self/fd/{descriptor}/{self._path.name}")
        finally:
            os.close(descriptor)
