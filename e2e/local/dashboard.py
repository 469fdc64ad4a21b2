#!/usr/bin/env python3
"""The dashboard in headless Chromium, before a real router and a real engine. Screenshots go to build/dashboard/.

keys, models, a chat that streams and is stopped, hostile text, curl, scaling, a lost connection; nothing leaves the
origin; names, contrast, Tab and width on a desk and on a phone, light and dark
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests")]

from accessible import check_contrast, check_names, check_tab_order, check_width  # noqa: E402  # after the path above
from fakes.serving import serving  # noqa: E402
from stage import HOSTILE, HOSTILE_NAME, KEY, Stage, staged  # noqa: E402
from visitor import PATIENCE_MS, Visitor, install_playwright  # noqa: E402

__all__ = ["dashboard_in_a_browser"]

CHROMIUM = "/usr/bin/chromium"
PICTURES = ROOT / "build" / "dashboard"
DESK, PHONE, SMALLEST = (1360, 1080), (390, 844), (320, 640)


def dashboard_in_a_browser() -> None:
    """the dashboard in Chromium: keys, models, chat, scaling, hostile text, contrast, keyboard; nothing leaves the origin"""
    subprocess.run([ROOT / "scripts" / "system-packages.sh", "e2e"], check=True)
    install_playwright()
    from playwright.sync_api import expect, sync_playwright  # installed just now

    expect.set_options(timeout=PATIENCE_MS)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "serve", "builtin://quire-tiny", seconds=180) as engine,
        staged(f"127.0.0.1:{engine.port}") as stage,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        _use(browser, stage, expect)
        _look(browser, stage, expect)
        browser.close()


# ---------------------------------------------------------------------- what it does


def _use(browser: Any, stage: Stage, expect: Any) -> None:
    visitor = Visitor(browser, stage, DESK, "light")
    for check in (_asks_for_a_key, _shows_models, _streams, _stops, _tells_apart, _leaves_text_text, _shows_errors,
                  _curl_works, _shows_scaling, _says_that_it_is_cut_off):  # fmt: skip
        print(f"   {check.__doc__}", flush=True)
        check(visitor, stage, expect)
    visitor.close()


def _asks_for_a_key(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """asks for a key, keeps it in this tab only, and shows no more than the key may see"""
    page = visitor.page
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    expect(page.locator("#key-why")).to_contain_text("wants an API key")
    visitor.enter("wrong")
    expect(page.locator("#key-why")).to_contain_text("does not know this key")
    visitor.enter("guest")
    expect(page.locator(".model h3")).to_have_text(["quire-tiny", "asleep"])
    page.get_by_role("button", name="API key").click()
    visitor.enter()
    expect(page.locator(".model h3")).to_have_text(["quire-tiny", HOSTILE_NAME, "asleep"])
    kept = page.evaluate("() => [Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [[KEY], 0, ""], kept
    page.reload()
    expect(page.locator(".model")).to_have_count(3)


def _shows_models(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """shows models, their replicas, and what the engines say of themselves"""
    tiny, scripted, asleep = (visitor.page.locator(".model").nth(i) for i in range(3))
    expect(tiny.locator(".badge").first).to_have_text("Serving")
    expect(asleep.locator(".badge").first).to_have_text("At zero")
    expect(asleep).to_contain_text("also gpt-4o")
    row = scripted.get_by_role("row").nth(1)
    expect(row).to_contain_text("ready")
    expect(row.get_by_role("cell").nth(1)).to_have_text("1")
    expect(row.get_by_role("cell").nth(2)).to_have_text("2")
    expect(row.get_by_role("cell").nth(3)).to_contain_text("25 %")
    expect(tiny.get_by_role("row").nth(1).get_by_role("cell").nth(3)).to_contain_text("%")


def _streams(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """streams an answer of the real engine, with the parameters of the form"""
    page = visitor.page
    page.get_by_text("Parameters").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Max tokens").fill("20")
    turn = visitor.ask("quire-tiny", "What is an LLMDeployment?")
    expect(turn).to_contain_text("An LLMDeployment is a Kubernetes resource")
    expect(page.locator("#chat-status")).to_contain_text("Done: 20 tokens")
    expect(page.locator("#chat-log")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".model").first.locator(".numbers > div").filter(has_text="Time per token")).to_contain_text(
        " ms"
    )
    page.get_by_label("Max tokens").fill("")


def _stops(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """shows an endless answer as it comes, and stops it, at the engine too"""
    turn = visitor.ask(HOSTILE_NAME, "count")
    expect(turn).to_contain_text("0 1 2 3 4 5 ")
    expect(visitor.page.locator("#chat-log")).to_have_attribute("aria-busy", "true")
    visitor.page.get_by_role("button", name="Stop").click()
    expect(turn).to_contain_text("stopped")
    assert stage.left.wait(30), "the engine still answers"
    visitor.page.get_by_role("button", name="New chat").click()
    expect(visitor.page.locator(".turn")).to_have_count(0)


def _tells_apart(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """shows reasoning and tool calls apart from the answer"""
    turn = visitor.ask(HOSTILE_NAME, "think")
    expect(turn.locator("> .text")).to_have_text("I look it up.")
    expect(turn.locator(".reasoning .text")).to_have_text("They want the weather.")
    expect(turn.locator(".call h4")).to_have_text("Calls weather")
    expect(turn.locator(".call pre")).to_have_text('{"city": "Bern"}')


def _leaves_text_text(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """leaves what a model writes, and its name, text"""
    turn = visitor.ask(HOSTILE_NAME, "hostile")
    expect(turn.locator("> .text")).to_have_text(HOSTILE)
    expect(turn.locator(".reasoning .text")).to_have_text(HOSTILE)
    expect(turn.locator("h3")).to_have_text(HOSTILE_NAME)
    assert visitor.page.evaluate("() => [document.images.length, document.scripts.length, typeof hacked]") == [
        1,
        1,
        "undefined",
    ]


def _shows_errors(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """shows what failed, in the chat and among the errors"""
    turn = visitor.ask(HOSTILE_NAME, "fail")
    expect(turn.locator(".failure")).to_have_text("this went wrong")
    row = visitor.page.locator("#error-rows tr").first
    expect(row).to_contain_text("the engine answered 500")
    expect(visitor.page.get_by_label("Message", exact=True)).to_have_value("fail")


def _curl_works(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """gives a line for curl that a shell runs as it stands, without the key in it"""
    page = visitor.page
    page.get_by_role("button", name="New chat").click()
    page.get_by_label("Model", exact=True).select_option(HOSTILE_NAME)
    page.get_by_label("Message", exact=True).fill(f"it's $HOME `id` \\ {HOSTILE}\nand a line")
    page.get_by_text("The same with curl").click()
    line = page.locator("#curl-line").inner_text()
    assert KEY not in line, line
    environment = {**os.environ, "QUIRE_API_KEY": KEY}
    done = subprocess.run(
        ["bash", "-c", f"{line} --silent --fail"], capture_output=True, text=True, env=environment, timeout=30
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    assert "it's $HOME `id` \\\\ <img" in done.stdout, done.stdout
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#curl-copied")).to_have_text("Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == line
    page.get_by_label("Message", exact=True).fill("")


def _shows_scaling(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """shows what was scaled and why, and says it aloud"""
    scripted = visitor.page.locator(".model").nth(1)
    expect(scripted.locator(".scaling")).to_be_hidden()
    stage.scale(2, "more waits than one replica can do")
    expect(scripted.locator(".history li")).to_contain_text("1 → 2")
    expect(scripted.locator(".history li")).to_contain_text("more waits than one replica can do")
    expect(scripted.locator("tbody tr")).to_have_count(2)
    expect(visitor.page.get_by_role("status").filter(has_text="2 of 2 replicas ready")).to_have_count(1)


def _says_that_it_is_cut_off(visitor: Visitor, stage: Stage, expect: Any) -> None:
    """says that the connection is lost, and goes on when it is back"""
    visitor.context.set_offline(True)
    expect(visitor.page.get_by_role("alert")).to_contain_text("Connection lost")
    visitor.context.set_offline(False)
    expect(visitor.page.get_by_role("alert")).to_be_hidden()
    expect(visitor.page.locator("#connection")).to_have_text("live")


# ---------------------------------------------------------------------- how it looks


def _look(browser: Any, stage: Stage, expect: Any) -> None:
    stage.rename("storyteller")
    stop = threading.Event()
    crowd = threading.Thread(target=_crowd, args=(stage, stop))
    crowd.start()
    try:
        for name, size, scheme in (("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light"),
                                   ("phone-dark", PHONE, "dark"), ("smallest", SMALLEST, "light")):  # fmt: skip
            print(f"   names, contrast, Tab and width: {name}", flush=True)
            _look_at(Visitor(browser, stage, size, scheme), stage, expect, name)
    finally:
        stop.set()
        crowd.join()


def _look_at(visitor: Visitor, stage: Stage, expect: Any, name: str) -> None:
    page = visitor.page
    check_names(page)
    visitor.enter()
    expect(page.locator(".model")).to_have_count(3)
    visitor.ask("quire-tiny", "What is an LLMDeployment?")
    expect(page.locator("#chat-status")).to_contain_text("Done")
    page.wait_for_timeout(15_000 if name in ("light", "dark") else 1_000)  # something for the sparklines
    page.evaluate("() => scrollTo(0, 0)")
    page.screenshot(path=PICTURES / f"{name}.png", full_page=name.startswith("phone"))
    for prompt in ("think", "fail"):  # for what is seen only then
        visitor.ask("storyteller", prompt)
        expect(page.locator("#chat-send")).to_be_enabled()
    for summary in ("Parameters", "The same with curl"):
        page.get_by_text(summary).click()
    check_names(page)
    check_contrast(page)
    check_tab_order(page)
    check_width(page)
    visitor.close()


def _crowd(stage: Stage, stop: threading.Event) -> None:
    """Others who use the model, so that there are numbers to see."""
    headers = {"authorization": f"Bearer {KEY}"}
    while not stop.is_set():
        link = http.client.HTTPConnection("127.0.0.1", stage.port, timeout=60)
        body = {
            "model": "quire-tiny",
            "prompt": "Once upon a time",
            "max_tokens": 200,
            "n": 4,
            "stream": True,
            "ignore_eos": True,
        }
        link.request("POST", "/v1/completions", json.dumps(body), headers)
        link.getresponse().read()
        link.close()
        stop.wait(0.5)


if __name__ == "__main__":
    dashboard_in_a_browser()
