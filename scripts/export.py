"""A run's adapter merged into its base: a plain Hugging Face folder that transformers opens without peft or Rewind.

python scripts/export.py --run runs/grpo --output runs/grpo-merged
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.model_flags import add_model_flags, opening


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", required=True, help="a run folder with an adapter, of either role")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    add_model_flags(p, rows=False)
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from rewards.mix import MIX_FILE, mix_of
    from rl import RewindError
    from rl.models.bases import adapter_folder
    from rl.models.export import save_merged
    from rl.models.known import whole_model
    from rl.models.proposer import LOADERS
    from rl.models.run_role import role_of
    from rl.running.files import write_whole
    from rl.running.run_folder import claim

    if adapter_folder(arguments.run) is None:
        folder = Path(arguments.run)
        if whole_model(folder) != folder:
            raise RewindError(
                f"{folder} trained all weights, so there is nothing to merge: {whole_model(folder)} is a plain folder "
                "already, which load_fdm, load_idm and transformers open"
            )
        raise RewindError(f"{arguments.run} holds no adapter: there is nothing to merge")
    role = role_of(arguments.run)
    model = LOADERS[role or "fdm"](arguments.run, **opening(arguments))
    base = model.backbone.name
    output = claim(
        arguments.output,
        "export.py",
        plain(vars(arguments)),
        inputs=[arguments.run, base],
        overwrite=arguments.overwrite,
    )
    about = {"exported": {"run": arguments.run, "base": base}, **({"role": role} if role is not None else {})}
    mix = mix_of(getattr(model, "run", None))  # an inverse model has none
    if mix is not None:  # the exported model draws the same candidates: `fitted` chooses among them as before
        write_whole(output / MIX_FILE, mix.read_text(encoding="utf-8"))
    save_merged(model.backbone, model.adapter, output, about)
    opens = f"load_{role}" if role is not None else "load_fdm, load_idm"
    with_mix = "" if mix is None else f", with the fitted mix of rewards ({MIX_FILE})"
    print(f"{arguments.run} merged into {base}: {output} opens with {opens} and transformers{with_mix}")


if __name__ == "__main__":
    run(main)
