"""What all scripts share: `--config FILE.yaml` with flags that win, and errors as one sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.paths import expanded
from rl.running import ending, lock, siblings
from rl.running.files import full_disk
from rl.running.mapping import mapping as mapping  # for scripts, which take all from here
from rl.running.run_folder import how_to_go_on
from rl.words import did_you_mean

siblings.need(*siblings.OURS)  # every script comes by here first
MANY = 60
"""So many known keys are no help in a sentence."""


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, others: list[str] | None = None
) -> argparse.Namespace:
    """Parse flags over the values of an optional `--config` YAML file.

    An unknown key in the file is an error; with `others` it is put there, for a file that another script shares.

    Raises:
        RewindError: an unknown flag or key, a value that does not fit.
    """
    parser.add_argument("--config", type=Path, help="YAML file with any of these arguments; flags win over it")
    known, _ = argparse.ArgumentParser(add_help=False, parents=[_only_config()]).parse_known_args(argv)
    required = [action for action in parser._actions if action.required]
    if known.config is not None:
        values = read_yaml(known.config)
        actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
        # A flag may have an older name, which older files say.
        by_flag = {flag[2:]: action for action in actions.values() for flag in action.option_strings}
        for key, value in values.items():
            if key in by_flag and not key.startswith("no-"):
                name, key = key, by_flag[key].dest
                if name != key and key in values:
                    raise RewindError(f"{known.config}: '{name}' and '{key}' are one argument: give it once")
            if key not in actions and others is not None:
                others.append(key)
                continue
            if key not in actions:
                raise RewindError(unknown_key(known.config, key, list(actions)))
            parser.set_defaults(**{key: _convert(actions[key], value, known.config)})
            actions[key].required = False
    check_flags(parser, sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    for action in required:
        if getattr(arguments, action.dest) is None:
            raise RewindError(f"{known.config}: '{action.dest}' has no value")
    for name, value in vars(arguments).items():  # no shell has done it for a value from a file, or behind a '='
        setattr(arguments, name, _at_home(value))
    return arguments


def _at_home(value: Any) -> Any:
    """A path that begins with '~' as one in the home folder."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    return expanded(value) if isinstance(value, Path) else value


def run(main: Callable[[], None]) -> None:
    """Run a script: a `RewindError` becomes one sentence and exit code 2, a full disk one and exit code 1, Ctrl-C a
    word on what stays and how to go on, an output that nobody reads any more (`| head`) nothing.
    """
    ended = False
    try:
        try:
            main()
        except SystemExit:  # as after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        ended = True
    except Exception as error:
        if ending.reader_is_gone(error):
            sys.exit(ending.leave_quietly())
        full = full_disk(error)
        if full is None and not isinstance(error, RewindError):
            raise
        ending.close_bars()
        if isinstance(error, RewindError):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2 if full is None else 1)
        stays = "what has been saved stays: make room, and go on with --resume where the script has it"
        print(f"error: a file could not be written ({full}); {stays}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        ending.close_bars()
        print(f"\ninterrupted: what has been saved stays{how_to_go_on()}", file=sys.stderr)
        sys.exit(130)
    finally:
        lock.release_all()
        ending.leave_group(ended)


def plain(arguments: Any) -> Any:
    """Parsed arguments as JSON values: paths as text."""
    if isinstance(arguments, dict):
        return {key: plain(value) for key, value in arguments.items()}
    if isinstance(arguments, list | tuple):
        return [plain(item) for item in arguments]
    return str(arguments) if isinstance(arguments, Path) else arguments


def _only_config() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path)
    return parser


def check_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse flags that a parser does not have; the beginning of one is taken for it where it is the only one.

    Raises:
        RewindError: an unknown flag, or a beginning of several, with the nearest one that there is.
    """
    known = parser._option_string_actions
    for word in argv:
        flag = word.partition("=")[0]
        if word == "--":
            return
        if not flag.startswith("--") or flag in known:
            continue
        begun = [name for name in known if name.startswith(flag)]
        if len({id(known[name]) for name in begun}) != 1:
            near = did_you_mean(flag, known, ":") or (f": did you mean one of {', '.join(begun)}" if begun else "")
            raise RewindError(f"there is no flag '{flag}'{f'{near}?' if near else ': --help shows all'}")


def unknown_key(path: Path, key: str, known: Sequence[str]) -> str:
    """The sentence about a key of a YAML file that no argument has."""
    listed = f"; known keys: {', '.join(sorted(known))}" if len(known) < MANY else "; --help shows all"
    near = did_you_mean(key, known, ":")
    return f"{path}: unknown key '{key}'{f'{near}?' if near else listed}"


def read_yaml(path: Path) -> dict[str, Any]:
    """What a YAML file holds by key; an empty one holds nothing.

    Raises:
        RewindError: it cannot be read, is no YAML, or holds something else than a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RewindError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RewindError(f"the config {path} is no UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise RewindError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RewindError(f"{path} must hold 'key: value' lines, not a {type(values).__name__}")
    return values


def _convert(action: argparse.Action, value: Any, path: Path) -> Any:
    """A YAML value as the flag's own type would make it; an empty one is the flag's default."""
    if value is None:
        return action.default
    if isinstance(action, argparse.BooleanOptionalAction | argparse._StoreTrueAction):
        if not isinstance(value, bool):
            raise RewindError(f"{path}: '{action.dest}' must be true or false, not {value!r}")
        return value
    if action.type is mapping and isinstance(value, dict):
        return value
    many = action.nargs in ("+", "*")
    items = value if isinstance(value, list) else [value]
    if (isinstance(value, list) and not many) or (action.nargs == "+" and not items):
        wanted = "at least one value" if many else "one value"
        raise RewindError(f"{path}: '{action.dest}' takes {wanted}, not {value!r}")
    if any(isinstance(item, bool | list | dict) for item in items):
        raise RewindError(f"{path}: '{action.dest}' cannot be {value!r}")
    make = action.type if callable(action.type) else str
    try:
        made = [make(str(item)) for item in items]
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise RewindError(f"{path}: '{action.dest}' cannot be {value!r}: {error}") from error
    for item in made:
        if action.choices is not None and item not in action.choices:
            raise RewindError(f"{path}: '{action.dest}' must be one of {', '.join(map(str, action.choices))}")
    return made if many else made[0]
