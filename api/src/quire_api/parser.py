"""The parser of command lines: argparse, but a mistake is `InvalidInput`, with the nearest flag for a typo."""

import argparse
from typing import NoReturn

from quire_api.errors import InvalidInput, nearest

__all__ = ["FlagParser"]


class FlagParser(argparse.ArgumentParser):
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
