"""`quire bench serve|throughput|latency`: the table of them. Each is imported when it is called."""

import importlib
import sys

from quire_api.errors import nearest

__all__ = ["bench"]

COMMANDS = {  # name -> module, what it does
    "serve": ("quire_engine.bench.serve", "measure a server that speaks OpenAI's API: this one or any other"),
    "throughput": ("quire_engine.bench.offline", "tokens a second of many prompts, in this process"),
    "latency": ("quire_engine.bench.offline", "seconds of one batch, again and again, in this process"),
}


def bench(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: quire bench COMMAND [--help]\n")
        for name, (_, text) in COMMANDS.items():
            print(f"  {name:10} {text}")
        return 0 if argv else 2
    name, *rest = argv
    if name not in COMMANDS:
        print(f"quire bench: {name}: unknown command; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    return int(getattr(importlib.import_module(COMMANDS[name][0]), name)(rest))
