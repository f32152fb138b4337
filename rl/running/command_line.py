"""What all scripts share: `--config FILE.yaml` with flags that win, and errors as one sentence."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.running import ending, lock, siblings
from rl.running.files import full_disk
from rl.running.run_folder import how_to_go_on

siblings.need(*siblings.OURS)  # every script comes by here first


def parse_with_config(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, others: list[str] | None = None
) -> argparse.Namespace:
    """Parse flags over the values of an optional `--config` YAML file.

    An unknown key in the file is an error; with `others` it is put there, for a file that another script shares.
    """
    parser.add_argument("--config", type=Path, help="YAML file with any of these arguments; flags win over it")
    known, _ = argparse.ArgumentParser(add_help=False, parents=[_only_config()]).parse_known_args(argv)
    required = [action for action in parser._actions if action.required]
    if known.config is not None:
        values = _read_yaml(known.config)
        actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
        for key, value in values.items():
            if key not in actions and others is not None:
                others.append(key)
                continue
            if key not in actions:
                raise RewindError(f"{known.config}: unknown key '{key}'{_closest(key, list(actions))}")
            parser.set_defaults(**{key: _convert(actions[key], value, known.config)})
            actions[key].required = False
    arguments = parser.parse_args(argv)
    for action in required:
        if getattr(arguments, action.dest) is None:
            raise RewindError(f"{known.config}: '{action.dest}' has no value")
    return arguments


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
        go_on = how_to_go_on()
        then = f"; the same command with {go_on} goes on from there" if go_on else ""
        print(f"\ninterrupted: what has been saved stays{then}", file=sys.stderr)
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


def mapping(text: str) -> dict[str, Any]:
    """A mapping that is written as JSON on the command line; in a YAML file it is one already.

    Raises:
        RewindError: not JSON, or something else than a mapping.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise RewindError(f'{text!r} is not JSON ({error}): write \'{{"name": {{"argument": 1}}}}\'') from error
    if not isinstance(found, dict):
        raise RewindError(f'{text!r} is no mapping: write \'{{"name": {{"argument": 1}}}}\'')
    return found


def _only_config() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config", type=Path)
    return parser


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RewindError(f"cannot read the config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise RewindError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RewindError(f"{path} must hold 'key: value' lines, not a {type(values).__name__}")
    return values


def _closest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f": did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(sorted(known))}"


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
