"""The study of methods: its table by hand."""

from __future__ import annotations

import pytest

from rl.errors import RewindError
from trainers.studies.methods import MEASURES, Amounts, check
from trainers.studies.methods_page import table


def test_the_table_is_method_minus_start_over_runs() -> None:
    def measured(success: list[float], judge: float, seconds: float) -> dict[str, object]:
        rest = {key: [0.0, 0.0] for key in MEASURES}
        return {"seconds": seconds, "by_case": {**rest, "success": success, "judge": [judge, judge]}}

    first = {"start": measured([0.0, 1.0], 5.0, 0.0), "dpo": measured([1.0, 1.0], 6.0, 10.0)}
    second = {"start": measured([0.0, 0.0], 6.0, 0.0), "dpo": measured([0.0, 0.0], 6.5, 20.0)}
    head, _, start, dpo = table([first, second]).splitlines()
    assert head.startswith("|  | success, T 1 | success, best T | judge |")
    assert start.startswith("| the start, `bootstrapped` | 25.0 | 0.0 | 5.50 |")  # mean of 50 % and 0 %
    assert dpo.startswith("| DPO (`dpo`) | +25.0 (+0.0 to +50.0) | +0.0 (+0.0 to +0.0) | +0.75 (+0.75 to +0.75) |")
    assert dpo.endswith("| 15 |")


def test_bad_input_is_refused_before_any_work(tmp_path: object) -> None:
    with pytest.raises(RewindError, match="no method ppo: there are best_of_n, dpo"):
        check([], ["dpo", "ppo"])
    with pytest.raises(RewindError, match="at least 128 candidates"):
        Amounts(candidates=8)
