"""Somebody who looks at the dashboard: a page of Chromium, with all that it asked for and complained of."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from stage import KEY, Stage

__all__ = ["PATIENCE_MS", "Visitor", "install_playwright"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = Path.home() / ".cache" / "quire-e2e" / "browser"
PATIENCE_MS = 30_000


def install_playwright() -> None:
    """In a folder of its own, for this interpreter: the browser it drives is the system's. Kept for the next run."""
    wanted = (HERE / "browser.txt").read_text()
    done = PACKAGES / "installed.txt"
    if not done.exists() or done.read_text() != wanted:
        uv = [ROOT / ".venv" / "bin" / "uv", "pip", "install", "--quiet", "--python", sys.executable]
        subprocess.run([*uv, "--target", PACKAGES, "-r", HERE / "browser.txt"], check=True)
        done.write_text(wanted)
    sys.path.append(str(PACKAGES))


class Visitor:
    """A page with what it asked for and what it complained of."""

    def __init__(self, browser: Any, stage: Stage, size: tuple[int, int], scheme: str) -> None:
        width, height = size
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.context.set_default_timeout(PATIENCE_MS)
        self._origin = stage.url
        self._asked: list[str] = []
        self._complaints: list[str] = []
        self.context.on("request", lambda request: self._asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self._complaints.append(str(error)))
        self.page.on("console", lambda message: self._complaints.append(message.text))
        self.page.goto(f"{stage.url}/ui")

    def enter(self, key: str = KEY) -> None:
        self.page.get_by_label("Key", exact=True).fill(key)
        self.page.get_by_role("button", name="Use this key").click()

    def ask(self, model: str, prompt: str) -> Any:
        """The model's turn, which may still grow; the one before has ended."""
        self.page.locator("#chat-send:not([disabled])").wait_for()
        self.page.get_by_label("Model", exact=True).select_option(model)
        self.page.get_by_label("Message", exact=True).fill(prompt)
        self.page.keyboard.press("Enter")
        return self.page.locator(".turn[data-role=assistant]").last

    def close(self) -> None:
        foreign = [url for url in self._asked if not url.startswith(f"{self._origin}/")]
        assert len(self._asked) > 5
        assert not foreign, f"asked elsewhere: {foreign}"
        ours = [
            text for text in self._complaints if not text.startswith("Failed to load resource")
        ]  # 401, and no network
        assert not ours, f"the console says: {ours}"
        self.context.close()
