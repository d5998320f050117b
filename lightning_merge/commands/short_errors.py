"""What all parsers of the command line share, those of jsonargparse and those of argparse."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from lightning_merge.presets import with_presets

# What jsonargparse adds to its message about types and other ways to write a value.
_AROUND = re.compile(
    r"(- )?(Does not validate against any|Subtypes:|Errors:|Given value|Unable to load config|"
    r"Expected a path but|Expected a <class 'NoneType'>|Not a valid subclass of|"
    r"Subclass types expect|a class path \(str\)|a dict with|a dict without|$)"
)
_NO_CLASS = re.compile(
    r"(?:Expected a dot import path string: |No \S+ attribute )(?P<name>\w+)$", re.MULTILINE
)
_KEY = re.compile(r"Parser key \"([^\"]+)\"")


class ShortErrors:
    """Mixin for a parser: presets, all options on request, one-line errors, no abbreviations."""

    prog: str
    exit_on_error: bool
    _option_string_actions: dict[str, Any]

    def parse_args(self, *args: Any, **named: Any) -> Any:
        """Parses a command line, in which `-c` may name a preset.

        `--help.full` prints all options, `--trainer.help` those of Lightning's Trainer; both exit.
        """
        given = args[0] if args else named.pop("args", None)
        words = with_presets(sys.argv[1:] if given is None else given)
        parent: Any = super()
        if "--help.full" in words or "--trainer.help" in words:
            _print_options(_of_command(self, words), "--help.full" in words)
            raise SystemExit(0)
        return parent.parse_args(words, *args[1:], **named)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and exits with status 2; raises where errors are to be raised."""
        if not self.exit_on_error:
            parent: Any = super()
            parent.error(message, ex)
        program = self.prog.replace(" [options]", "")
        text = f"{program}: {brief(message)}{self._hint(message)}"
        print(f"{text} (--help lists the options)", file=sys.stderr)
        raise SystemExit(2)

    def _hint(self, message: str) -> str:
        if re.search(r"arguments are required: .*\brecipes\b", message):
            return "; -c preset:compare/recommended has some to begin with"
        unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
        near = get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        return f"; did you mean {near[0]}?" if near else ""

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        # argparse looks here for options with this prefix: an abbreviated option would silently
        # set another one, and could mean something else in a later version.
        parent: Any = super()
        found: list[Any] = parent._get_option_tuples(option_string)
        given = option_string.split("=", 1)[0]
        full = sorted({one[1] for one in found if one[1].startswith(given) and one[1] != given})
        if given.startswith("--") and full:
            self.error(f"there is no option {given}: write {' or '.join(full[:3])}")
        return found


def _of_command(parser: Any, words: Sequence[str]) -> Any:
    """The parser of the command that the words begin with, where it is one of several."""
    commands = getattr(parser, "_subcommands_action", None)
    return parser if commands is None else commands.choices.get(words[0], parser)


def _print_options(parser: Any, everything: bool) -> None:
    if not everything:
        parser.usage = f"{parser.prog} [options]"
        parser._action_groups = [
            group
            for group in parser._action_groups
            if any(one.dest.startswith("trainer.") for one in group._group_actions)
        ]
        if not parser._action_groups:
            parser.error("this command has no Trainer")
    parser.print_help()


class PlainParser(ShortErrors, argparse.ArgumentParser):
    """argparse's parser with one-line errors."""


def brief(message: str) -> str:
    """A message of jsonargparse in one line, without the list of accepted types.

    For a class that does not exist, it adds those of this package with a similar name.
    """
    missing = _NO_CLASS.search(message)
    if missing is not None:
        keys = _KEY.findall(message)
        where = f"{keys[-1]}: " if keys else ""
        names = _names()
        if missing["name"] in names:
            return f"{where}'{missing['name']}' is a class of another kind: give one of this kind"
        near = get_close_matches(missing["name"], names, 2)
        hint = f"did you mean {' or '.join(near)}?" if near else "give its full path"
        return f"{where}there is no class '{missing['name']}': {hint}"
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if not _AROUND.match(line)]
    text = " ".join(kept or lines)
    return re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)


def _names() -> list[str]:
    from lightning.pytorch import callbacks, loggers

    import lightning_merge
    from lightning_merge.align import matchings
    from lightning_merge.recipe.aggregate import aggregates
    from lightning_merge.recipe.recalibration import recalibrations
    from lightning_merge.recipe.selection import selections

    registered = [
        entry.name
        for registry in (aggregates, matchings, recalibrations, selections)
        for entry in registry
    ]
    public = [name for name in dir(lightning_merge) if not name.startswith("_")]
    return [*dict.fromkeys([*public, *registered, *callbacks.__all__, *loggers.__all__])]
