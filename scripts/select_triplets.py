"""Select the best IDM-labelled triplets, every class alike: round-robin over classes, highest score first.

python scripts/select_triplets.py --triplets runs/labelled/triplets.json --k 7000 --output runs/selected
python scripts/select_triplets.py --triplets runs/labelled/triplets.json --k 7000 \\
    --min_confidence 0.5 --balance verb --near_duplicates 32 --output runs/selected
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_data_flags

if TYPE_CHECKING:
    from rl.data.left_out import LeftOut
    from rl.triplets import Triplet


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--triplets", type=Path, required=True, help="triplets with scores, as label.py writes them")
    p.add_argument("--k", type=int, required=True, help="how many to take")
    p.add_argument("--by", default="score", help="the column that says which is best: score, confidence, ...")
    p.add_argument("--min_score", type=float, help="only what has at least this score")
    p.add_argument("--min_confidence", type=float, help="only what label.py --labelled expects to be right so often")
    p.add_argument("--min_words", type=int, default=0, help="of an action, at least")
    p.add_argument("--max_words", type=int, help="of an action, at most")
    p.add_argument(
        "--balance",
        default="class",
        choices=["class", "action", "verb", "none"],
        help="what takes turns: the entries' classes, or where there are none what was named: each sentence, or each "
        "first word",
    )
    p.add_argument("--motion_bins", type=int, default=1, help="so many quantiles of 'motion' take turns in each class")
    p.add_argument("--max_per_class", type=int, help="of each class, at most")
    p.add_argument("--max_per_action", type=int, help="of each sentence, at most")
    p.add_argument(
        "--near_duplicates",
        type=int,
        help="pass over what has the words of a better one, and pictures that differ from its in at most so many of "
        "510 bits (32: another quality, size or light)",
    )
    p.add_argument("--link_pictures", action="store_true", help="refer to the pictures where they are: no copies")
    add_data_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl import RewindError
    from rl.data.formats.names import parse_columns
    from rl.data.formats.table import Options
    from rl.data.labels.selection_rules import Rules
    from rl.data.labels.streamed_selection import select_entries, sorted_any
    from rl.data.left_out import check, list_left_out
    from rl.data.some_entries import streamed
    from rl.data.triplet_files import write_triplets
    from rl.running.files import write_whole
    from rl.running.run_folder import claim

    least = {"score": a.min_score, "confidence": a.min_confidence}
    rules = Rules(
        a.by,
        {column: value for column, value in least.items() if value is not None},
        (a.min_words, a.max_words),
        a.balance,
        a.motion_bins,
        a.max_per_class,
        a.max_per_action,
        a.near_duplicates,
    )
    options = Options(a.format, parse_columns(a.columns), a.data_split, a.image_root)
    read, some = streamed(a.triplets, options, a.check_pictures)
    left_out: dict[int, LeftOut] = {}

    def look(raw: dict[int, Any]) -> dict[int, Triplet]:
        found, left = some(raw)
        left_out.update((one.entry, one) for one in left)
        return found

    found = select_entries(read, look, _actions(look, left_out), a.k, rules, str(a.triplets))
    lost = [left_out[number] for number in sorted(left_out)]
    check(a.triplets, found.total, lost, a.strict)
    if not found.chosen:
        why = ", ".join(f"{count} {reason}" for reason, count in found.passed_over.most_common() if count)
        raise RewindError(f"no triplet of {a.triplets} may be chosen ({why}): loosen what passes over them")
    output = claim(a.output, "select_triplets.py", plain(vars(a)), inputs=[a.triplets], overwrite=a.overwrite)
    list_left_out(output, lost)
    file = write_triplets([*found.chosen.values()], output, link=a.link_pictures)
    passed_over = dict(found.passed_over.most_common())
    passed_over["behind the chosen ones"] = (
        found.total - len(lost) - len(found.chosen) - sum(found.passed_over.values())
    )
    reasons = dict(Counter(one.reason for one in lost).most_common())
    totals = {"in": found.total, "selected": len(found.chosen), "passed_over": passed_over, "left_out": reasons}
    write_whole(output / "totals.json", json.dumps(totals, indent=1) + "\n")
    print(f"{len(found.chosen)} of {found.total - len(lost)} triplets in {file}")
    counts = Counter(found.classes)
    print(", ".join(f"{name or 'no class'}: {counts[name]}" for name in sorted_any(counts)))
    print(", ".join(f"{count} {reason}" for reason, count in passed_over.items() if count) or "nothing passed over")
    if a.balance == "class" and set(counts) == {""}:
        print("no entry has a class: --balance verb lets what was named take turns")


def _actions(
    look: Callable[[dict[int, Any]], dict[int, Triplet]], left_out: dict[int, LeftOut]
) -> Callable[[int, Any], str | None]:
    """The action of an entry without a look at its pictures, where its form is a usual one."""
    from rl.actions import action_text, is_vector

    def action_of(number: int, entry: Any) -> str | None:
        if number in left_out:
            return None
        if isinstance(entry, Mapping) and isinstance(entry.get("input"), str | list | Mapping):
            words = entry.get("instruction", entry.get("prompt"))
            score = entry.get("score")
            usual = score is None or (isinstance(score, int | float) and not isinstance(score, bool))
            vector = next((one for one in (entry.get("action"), words) if is_vector(one)), None)
            if usual and vector is not None:
                return str(action_text(vector))
            if usual and isinstance(words, str) and words.strip() and not isinstance(entry.get("action"), list):
                return words.strip()
        triplet = look({number: entry}).get(number)
        return None if triplet is None else triplet.action

    return action_of


if __name__ == "__main__":
    run(main)
