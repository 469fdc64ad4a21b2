"""The dashboard's files: headers, ETag, policy, what is not there; and what /state has for it. The page itself is driven
in a browser by e2e/local/dashboard.py."""

import asyncio
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import Backend, plain
from fakes.routing import Client, all_ready, route, run
from hypothesis import given
from hypothesis import strategies as st

from quire_router import Endpoint, Model, Registry, Router, Scaling
from quire_router.health import Reported, reported_by
from quire_router.keys import KeyEntry, Keys, hash_of
from quire_router.ui import Pages

STATIC = {entry.name: entry.read_text() for entry in (files("quire_router.ui") / "static").iterdir()}
AS_ALICE = "authorization: Bearer secret\r\n"


def headers_of(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:]
    return dict(line.lower().split(": ", 1) for line in lines if line)


def get(path: str, head: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """From a router that wants keys, without one."""
    seen: list[tuple[int, dict[str, str], bytes]] = []

    async def scenario(router: Router, port: int) -> None:
        router.use_keys(Keys(()))
        client = await Client.connect(port)
        client.send(b"", path, method, head)
        answer = await client.reader.readuntil(b"\r\n\r\n")
        headers = headers_of(answer)
        status = int(answer.split(b" ")[1])
        bodiless = method == "HEAD" or status == 304
        body = b"" if bodiless else await client.reader.readexactly(int(headers["content-length"]))
        client.send(b"", "/livez", "GET")
        assert (await client.answer())[0] == 200, "what follows on the connection is answered, too"
        seen.append((status, headers, body))

    run(scenario)
    return seen[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("index.html", "text/html; charset=utf-8"),
        ("base.css", "text/css; charset=utf-8"),
        ("app.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ],
)
def test_files_come_without_a_key_and_with_a_strict_policy(name: str, kind: str) -> None:
    status, headers, body = get(f"/ui/{name}?x=1")

    assert (status, headers["content-type"]) == (200, kind)
    assert body.decode() == STATIC[name or "index.html"]
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "object-src": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"


def test_ui_leads_to_the_page_relatively() -> None:
    status, headers, _ = get("/ui")

    assert (status, headers["location"]) == (308, "ui/")


@pytest.mark.parametrize("sent", ["{}", 'W/{}, "other"', '"other", {}', "*"])
def test_what_the_browser_has_is_not_sent_again(sent: str) -> None:
    _, headers, body = get("/ui/app.js")

    status, again, nothing = get("/ui/app.js", f"if-none-match: {sent.format(headers['etag'])}\r\n")

    assert (status, nothing) == (304, b"")
    assert (again["etag"], again["content-length"]) == (headers["etag"], str(len(body)))


def test_what_has_changed_is_sent_again() -> None:
    assert get("/ui/app.js", 'if-none-match: "other"\r\n')[0] == 200


def test_head_has_no_body() -> None:
    status, headers, _ = get("/ui/app.js", method="HEAD")

    assert (status, headers["content-length"]) == (200, str(len(STATIC["app.js"].encode())))


def test_it_is_only_for_reading() -> None:
    assert get("/ui/app.js", method="POST")[0] == 405


@pytest.mark.parametrize(
    "path",
    [
        "/ui/nothing.js", "/ui/..", "/ui/../pages.py", "/ui/%2e%2e/pages.py", "/ui/..%2fpages.py", "/ui//etc/passwd", "/ui/./app.js",
        "/ui/static/app.js", "/ui/app.js/", "/ui/app.js%00", "/ui/..\\pages.py", "/ui/APP.JS",
    ],
)  # fmt: skip
def test_what_is_no_file_of_it_is_404(path: str) -> None:
    status, _, body = get(path)

    assert status == 404
    assert json.loads(body)["error"]["type"] == "not_found_error"


def test_beside_it_keys_are_wanted() -> None:
    assert get("/uix")[0] == get("/state")[0] == 401


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_path_is_another_file(rest: str) -> None:
    """Whatever is asked for: a file of the table, or 404."""
    answer = Pages().answer(b"GET", f"/ui/{rest}", None, b"")

    assert answer.startswith(b"HTTP/1.1 200" if rest == "" or rest in STATIC else b"HTTP/1.1 404")


@pytest.mark.parametrize("name", STATIC)
def test_a_file_is_short_and_needs_nothing_from_elsewhere(name: str) -> None:
    text = STATIC[name].replace("http://www.w3.org/2000/svg", "")

    assert len(text.splitlines()) <= 250
    assert re.findall(r"https?:\\?/\\?/", text.replace(r"/^https?:\/\//", "")) == []
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|@import", text) == []
    )
    assert re.findall(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?! type=\"module\" src=)", text) == []


def test_every_part_that_is_named_is_there() -> None:
    """Files by the page and by each other, elements by their id."""
    page = STATIC["index.html"]
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page))
    ids = set(re.findall(r'\sid="([^"]+)"', page))
    for name, text in STATIC.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([^"]+)"', text))
            assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= ids, name

    assert named | {"index.html"} == set(STATIC)
    assert set(re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', page)) <= ids


# ---------------------------------------------------------------------- what /state has for it


async def nothing(request: bytes, writer: Any) -> None:
    writer.write(plain(b"{}"))


def test_the_state_has_what_engines_say_of_themselves_and_what_was_scaled() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(nothing) as backend:
            backend.ready = plain(b'{"running": 3, "waiting": 2, "kv_usage": 0.25}')
            route(router, backend.address, history=(Scaling(at=5.0, before=1, after=2, reason="more to do"),))
            client = await Client.connect(port)

            async def model() -> Any:
                return (await client.get("/state"))["models"][0]

            await all_ready(port, 1)
            assert (await model())["backends"][0]["reported"] == {"running": 3, "waiting": 2, "kv_usage": 0.25}
            assert (await model())["history"] == [{"at": 5.0, "from": 1, "to": 2, "reason": "more to do"}]

            backend.ready = plain(b"ok")
            while (await model())["backends"][0]["reported"] is not None:
                await asyncio.sleep(0.02)

    run(scenario)


@pytest.mark.parametrize(
    "text",
    [
        "", "ok", "[]", "null", "3", '"a"', "{}", '{"running": 1, "waiting": 1}', '{"running": "x", "waiting": 1, "kv_usage": 0}',
        '{"running": 1, "waiting": 1, "kv_usage": NaN}', '{"running": -1, "waiting": 1, "kv_usage": 0}', "[" * 900,
        '{"running": 1e999, "waiting": 1, "kv_usage": 0}', '{"running": 1, "waiting": 1, "kv_usage": [0]}',
    ],
)  # fmt: skip
def test_a_server_that_says_something_else_says_nothing(text: str) -> None:
    assert reported_by(text) is None


def test_a_report_is_read() -> None:
    said = reported_by('{"running": 1, "waiting": 0, "kv_usage": 1.0, "more": 1}')

    assert said == Reported(running=1, waiting=0, kv_usage=1.0)


def test_a_key_sees_nothing_of_models_it_may_not_use() -> None:
    """Not even through the sentence on a file that is wrong."""

    async def scenario(router: Router, port: int) -> None:
        async with Backend(nothing) as backend:
            here = (Endpoint(address=backend.address),)
            router.replace(Registry((Model(name="open", endpoints=here), Model(name="inner", groups=("staff",)))))
            router.use_keys(Keys((KeyEntry(name="alice", sha256=hash_of("secret")),)))
            router.watch(Path("/nowhere.yaml"), lambda path: None).error = "inner: two models have this name"
            client = await Client.connect(port)

            state = await client.get("/state", AS_ALICE)
            router.use_keys(Keys((KeyEntry(name="alice", sha256=hash_of("secret"), groups=("staff",)),)))
            whole = await client.get("/state", AS_ALICE)

        assert "inner" not in json.dumps(state)
        assert [model["name"] for model in state["models"]] == ["open"]
        assert [file["error"] for file in whole["files"]] == ["inner: two models have this name"]

    run(scenario)
