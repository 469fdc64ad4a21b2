"""Streams answers from an engine; checks.py puts a call behind it and runs it in a pod."""

import http.client
import json
import sys
import threading
import time


def ask(host: str, question: str, model: str = "quire-tiny", begun: threading.Event | None = None) -> tuple[int, str]:
    """`host` may name a port; else it is 80."""
    body = {
        "model": model,
        "stream": True,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    link = http.client.HTTPConnection(host, timeout=60)
    link.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = link.getresponse()
    if answer.status != 200:
        sys.exit(f"status {answer.status}: {answer.read()[:300]}")
    text, events = "", 0
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                sys.exit(f"error event: {event}")
            events += 1
            if begun is not None:
                begun.set()
            text += event["choices"][0]["delta"].get("content") or ""
        elif line.startswith(b"data: [DONE]"):
            return events, text
    sys.exit("the stream ended without [DONE]")


def loop(host: str, question: str, seconds: float) -> None:
    first, count, end = ask(host, question)[1], 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if ask(host, question)[1] != first:
            sys.exit("another text")
        count += 1
    print(count)


def many(host: str, model: str, count: int) -> None:
    """So many clients at once, until standard input ends; prints `begun`, then a line for each that broke."""
    broken: list[str] = []
    over, begun = threading.Event(), [threading.Event() for _ in range(count)]

    def client(event: threading.Event) -> None:
        try:
            while not over.is_set():
                ask(host, "Tell me a story.", model, event)
        except (OSError, http.client.HTTPException, SystemExit) as error:
            broken.append(repr(error))
            event.set()

    threads = [threading.Thread(target=client, args=(event,)) for event in begun]
    for thread in threads:
        thread.start()
    for event in begun:
        event.wait()
    print("begun", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    print("\n".join(broken))
