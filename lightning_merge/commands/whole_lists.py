"""A list in a later configuration, or on the command line, replaces the earlier one whole.

jsonargparse completes each item of a list by the item at the same place of an earlier list of the
same length, so that a recipe would have settings of another one. Arguments
of classes are merged key by key; options that are dicts are replaced whole.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace


class WholeLists:
    """Mixin for a parser of jsonargparse whose `--config` replaces lists whole."""

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Adds an argument; that of the configuration files replaces lists."""
        if settings.get("action") in ("config", ActionConfigFile):
            settings["action"] = _LaterFile
        parent: Any = super()
        return parent.add_argument(*names, **settings)

    def parse_args(self, words: Sequence[str], *args: Any, **named: Any) -> Any:
        """Parses a command line, in which lists of mappings replace earlier ones, too."""
        parent: Any = super()
        return parent.parse_args(list(with_empty_lists(words)), *args, **named)


class _LaterFile(ActionConfigFile):
    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        _forget_lists(cfg, _loaded(values))
        try:
            super().__call__(parser, cfg, values, option_string)
        except UnicodeDecodeError:
            parser.error(f"{values} is not in UTF-8: save it so")


def with_empty_lists(words: Sequence[str]) -> Iterator[str]:
    """A command line in which an empty list comes before each list of mappings.

    An item then finds none at its place. `--recipes+='[...]'` still appends to what is there.
    """
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") and not option.endswith("+"):
            given = _loaded(value if equals else "".join(words[place + 1 : place + 2]))
            if isinstance(given, list) and any(isinstance(one, Mapping) for one in given):
                yield f"{option}=[]"
        yield word


def _loaded(text: str) -> Any:
    """The YAML of a file or a string; none where the parser has an error to report about it."""
    try:
        return yaml.safe_load(Path(text).read_bytes() if os.path.isfile(text) else text)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _forget_lists(earlier: Namespace, later: Any) -> None:
    for key, value in later.items() if isinstance(later, Mapping) else ():
        held = earlier.get(str(key))
        if isinstance(value, list) and isinstance(held, list):
            earlier.pop(str(key))
        elif isinstance(value, Mapping) and isinstance(held, Namespace):
            # `data: {root: ...}` is short for `data: {init_args: {root: ...}}`.
            short = "class_path" in held and not {"class_path", "init_args"} & value.keys()
            _forget_lists(held.get("init_args") or Namespace() if short else held, value)
