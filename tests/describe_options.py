"""Writes what `--help` shows (`described.json`) from the commands' own parsers: `make options`."""

import json
import sys
from importlib import import_module
from unittest.mock import patch

from lightning_merge.cli import LIGHTNING, OURS, main
from lightning_merge.commands import plot
from lightning_merge.commands.described import FILE
from lightning_merge.commands.list import KINDS
from lightning_merge.commands.short_errors import ShortErrors

TRAINER = {
    "flags": ["--trainer.help"],
    "dest": "trainer.help",
    "help": "list the options of Lightning's Trainer, such as --trainer.max_epochs",
    "required": False,
    "default": None,
    "nargs": 0,
    "choices": None,
}
EVERYTHING = {
    **TRAINER,
    "flags": ["--help.full"],
    "dest": "help.full",
    "help": "list all options with their types, the Trainer's too",
}
# Of Lightning's commands, whose own texts are longer.
LIGHTNINGS = {
    "config": "a YAML file with these options, or preset:NAME",
    "seed_everything": "seeds weights, shuffling and augmentation (default: 0)",
    "model": "the LightningModule: a class of this package or the path of your own, whose "
    "arguments are --model.init_args.NAME",
    "data": "the LightningDataModule: likewise, with --data.init_args.NAME",
    "ckpt_path": "the checkpoint to resume from or to evaluate: a path, `best` or `last`",
    "weights_only": "whether to refuse checkpoints that hold more than tensors and plain values",
    "verbose": "whether to print the results",
    "return_predictions": "whether to return what was predicted",
}


class Reached(BaseException):
    """The command has made its parser."""


def parser_of(words):
    """The parser that a command makes."""

    def reach(parser, *args, **named):
        raise Reached(parser)

    with patch.object(ShortErrors, "parse_args", reach), patch.object(sys, "argv", ["", *words]):
        try:
            main()
        except Reached as reached:
            (parser,) = reached.args
            commands = getattr(parser, "_subcommands_action", None)
            return parser if commands is None else commands.choices[words[0]]
    raise AssertionError(f"{words} parses nothing")


def described():
    """All commands' options, and all registries' entries, as plain data."""
    names = [[name] for name in (*LIGHTNING, *OURS)]
    names += [["predict", "FOLDER"], *(["plot", figure] for figure in plot.OF_NETWORKS)]
    lists = {
        kind: [
            [entry.name, entry.line, entry.needs, entry.paper]
            for entry in getattr(import_module(home), kind)
        ]
        for kind, home in KINDS.items()
    }
    return {"commands": {" ".join(words): command(words) for words in names}, "lists": lists}


def command(words):
    parser = parser_of(words)
    shown = [action for action in parser._actions if is_shown(action)]
    # Those of classes, which jsonargparse keeps beside its actions.
    required = getattr(parser, "_extra_required_keys", ())
    options = [option(action, required) for action in shown]
    if words[0] in LIGHTNING:
        options = [one | {"help": LIGHTNINGS.get(one["dest"], one["help"])} for one in options]
    if any(action.dest.startswith("trainer.") for action in parser._actions):
        options += [TRAINER, EVERYTHING]
    return {"description": " ".join((parser.description or "").split()), "options": options}


def is_shown(action):
    return action.dest not in ("help", "trainer") and not action.dest.startswith("trainer.")


def option(action, required):
    flags = [flag for flag in action.option_strings if not flag.endswith("+")]
    found = {
        "flags": flags,
        "dest": action.dest,
        "help": " ".join((action.help or "").split()),
        "required": action.required or action.dest in required,
        "default": None if action.default == "==SUPPRESS==" else action.default,
        "nargs": action.nargs,
        "choices": None if action.choices is None else [*action.choices],
    }
    of, _, last = action.dest.rpartition(".")
    if last == "help":
        found["help"] = f"list the arguments of the class that --{of} names"
    if action.dest == "print_config":
        found["help"] = "print the configuration that all options together make, and exit"
        found["nargs"] = 0
    return json.loads(json.dumps(found))


if __name__ == "__main__":
    FILE.write_text(json.dumps(described(), indent=1) + "\n", encoding="utf-8")
