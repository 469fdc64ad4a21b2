"""argparse as every command of ours uses it: a mistake is `InvalidInput`, with the fix. Knows no option."""

import argparse
from typing import NoReturn

from quire_api.errors import InvalidInput, nearest

__all__ = ["FlagParser", "port"]


class FlagParser(argparse.ArgumentParser):
    """argparse, but mistakes are `InvalidInput`, with the nearest flag for a typo."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
            raise InvalidInput(
                f"{word.split('=')[0]}: unknown flag; {nearest(word.split('=')[0], known)}"
                if word.startswith("-")
                else f"{word}: unexpected argument"
                for word in unknown.split()
            )
        raise InvalidInput([message.removeprefix("argument ")])


def port(text: str) -> int:
    """For flags of commands that have no config."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, 0 to 65535")
    return int(text)
