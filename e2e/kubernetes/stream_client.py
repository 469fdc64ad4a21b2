"""Streams answers from an engine; checks.py puts a call behind it and runs it in a pod."""

import http.client
import json
import sys
import time


def ask(host: str, question: str) -> tuple[int, str]:
    body = {
        "model": "quire-tiny",
        "stream": True,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    }
    link = http.client.HTTPConnection(host, 80, timeout=60)
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
