"""A published checkpoint once into the plain form: safetensors, VQ tokenizer in float32, its decoder, tokenizer.

python scripts/convert.py --from GAIR/Anole-7b-v0.1 --output bases/anole
python scripts/convert.py --from chameleon/models/7b --output bases/chameleon --max_shard_size 2GB
python scripts/convert.py --from Alpha-VLLM/Lumina-mGPT-7B-768 --vq leloy/Anole-7b-v0.1-vqvae-hf --output bases/lumina
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--from",
        required=True,
        help="a folder or Hub id (owner/name, owner/name@revision): Meta's layout (consolidated*.pth), or one of "
        "transformers in safetensors",
    )
    p.add_argument(
        "--vq",
        "--vqgan",
        help="a folder or Hub id with the VQ image tokenizer (safetensors, or vqgan.ckpt with vqgan.yaml), where the "
        "checkpoint lacks it or its decoder",
    )
    p.add_argument("--family", help="refuse a checkpoint of another family, e.g. chameleon")
    p.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the language model; the VQ tokenizer stays float32",
    )
    p.add_argument(
        "--action_ranges",
        help='for actions that are vectors: a JSON file {"low": [...], "high": [...]}, which the base keeps',
    )
    p.add_argument("--max_shard_size", default="5GB", help="the most weights in a file, e.g. 5GB, 500MB")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from rl.data.action_vectors import read_ranges
    from rl.models.conversion import file_size, prepare
    from rl.running.files import whole_folder
    from rl.running.run_folder import claim

    a, source = arguments, vars(arguments)["from"]
    actions = None if a.action_ranges is None else read_ranges(a.action_ranges)
    found = prepare(source, a.output, a.vq, a.dtype, file_size(a.max_shard_size), a.family, actions)
    output = claim(a.output, "convert.py", plain(vars(a)), inputs=found.inputs, overwrite=a.overwrite)
    with whole_folder(output, last="config.json") as beside:  # without which nothing opens it
        found.write(beside)
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e9
    pictures = "reads and draws pictures" if found.draws else "reads pictures, and has no VQ decoder to draw any"
    print(f"{source} converted ({size:.2f} GB): {output} opens with load_fdm and load_idm, {pictures}")


if __name__ == "__main__":
    run(main)
