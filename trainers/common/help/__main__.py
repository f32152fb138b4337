"""Write the help texts again: python -m trainers.common.help, in a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import trainers
from trainers.common.help import FOLDER, SCRIPTS, WIDTH, versions_line


def printed(script: str) -> str:
    """What a script's parser prints."""
    root = Path(trainers.__file__).parent.parent
    told = {**os.environ, "REWIND_HELP": "parser", "COLUMNS": str(WIDTH)}
    command = [sys.executable, str(root / "scripts" / f"{script}.py"), "--help"]
    return subprocess.run(command, env=told, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    for script in SCRIPTS:
        text = f"{versions_line()}\n{printed(script)}"
        (FOLDER / f"{script}.txt").write_text(text, encoding="utf-8")
        print(FOLDER / f"{script}.txt")


if __name__ == "__main__":
    main()
