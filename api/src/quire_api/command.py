"""The one command, `quire`: a table of subcommands, each imported only when it is called.

What is not installed is named with the distribution that has it. Bad input ends with one line for each
mistake and exit code 2; a subcommand that foresees other failures returns a code of its own.
"""

import importlib
import sys

from quire_api.errors import InvalidInput, nearest

__all__ = ["SUBCOMMANDS", "main"]

SUBCOMMANDS: dict[str, tuple[str, str, str]] = {  # name -> (module:function, distribution, what it does)
    "serve": ("quire_engine.cli:serve", "quire-engine", "serve one model over HTTP"),
    "generate": ("quire_engine.cli:generate", "quire-engine", "write the answer to one prompt to the terminal"),
    "fetch": ("quire_engine.fetch.cli:fetch", "quire-engine", "bring a model's weights into a folder, verified"),
    "bench": ("quire_engine.bench.cli:bench", "quire-engine", "measure a server, or the engine in this process"),
    "up": ("quire_operator.cli:up", "quire-operator", "run the models of YAML files on this machine"),
    "get": ("quire_operator.local.commands:get", "quire-operator", "list the models that `quire up` runs"),
    "describe": ("quire_operator.local.commands:describe_", "quire-operator", "show one of them, and its engines"),
    "explain": ("quire_operator.local.commands:explain_", "quire-operator", "say why it is in its state"),
    "logs": ("quire_operator.local.commands:logs", "quire-operator", "show what its engines have written"),
    "scale": ("quire_operator.local.commands:scale", "quire-operator", "change how many engines it has"),
    "chat": ("quire_operator.local.chat:chat", "quire-operator", "talk with a model on the terminal"),
    "down": ("quire_operator.local.commands:down", "quire-operator", "end `quire up`"),
    "plan": ("quire_operator.cli:plan", "quire-operator", "print what a YAML file would become"),
    "simulate": ("quire_operator.simulate_command:run", "quire-operator", "replay a load on the autoscaler"),
    "operator": ("quire_operator.cli:operator", "quire-operator", "run the Kubernetes operator"),
    "router": ("quire_router.cli:router", "quire-router", "run the router before given backends"),
}


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("usage: quire COMMAND [--help]\n")
        for name, (_, _, text) in SUBCOMMANDS.items():
            print(f"  {name:10} {text}")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in SUBCOMMANDS:
        print(f"quire: {name}: unknown command; {nearest(name, SUBCOMMANDS)}", file=sys.stderr)
        return 2
    target, distribution, _ = SUBCOMMANDS[name]
    module_name, _, function = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module_name.split(".")[0]:
            raise
        print(f"quire {name} needs {distribution}: pip install {distribution}", file=sys.stderr)
        return 2
    try:
        return int(getattr(module, function)(rest) or 0)
    except InvalidInput as error:
        for problem in error.problems:
            print(f"quire {name}: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
