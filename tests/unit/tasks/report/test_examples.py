"""Which answers are shown: some at random, whatever they show, and as many of each side of those that decide."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from tasks.report.examples import choose, groups
from tasks.report.page import render_page
from tests.support.report_sample import sample_report

N = 300


def _tables(kd: list[bool] | None, control: list[bool] | None, nll: tuple[float, ...] = (1.0,) * N) -> dict[str, Any]:
    texts, unchecked = [f"text {row}" for row in range(N)], [None] * N

    def one(correct: list[bool] | None, losses: tuple[float, ...]) -> pd.DataFrame:
        marks = pd.Series(unchecked if correct is None else correct, dtype=object)
        columns = dict.fromkeys(("instruction", "input", "reference", "generated"), texts)
        ids = [f"row{row}" for row in range(N)]
        return pd.DataFrame(columns | {"row_id": ids, "correct": marks, "nll": losses, "response_tokens": 2})

    return {"kd": one(kd, nll), "sft_control": one(control, (1.0,) * N)}


KD, CONTROL = [row % 3 != 0 for row in range(N)], [row % 3 == 0 or row % 10 == 1 for row in range(N)]


def _places(tables: dict[str, Any], chosen: str) -> list[int]:
    return [int(one.instruction.split()[1]) for one in choose(tables) if one.chosen == chosen]


def test_six_are_drawn_whatever_they_show_and_three_of_each_side_decide() -> None:
    tables = _tables(KD, CONTROL)
    drawn = _places(tables, "at random")
    assert len(drawn) == 6
    assert drawn == _places(_tables(CONTROL, KD), "at random")  # by the ids alone
    better, worse = _places(tables, "better with kd"), _places(tables, "better with control")
    assert [(KD[row], CONTROL[row]) for row in better] == [(True, False)] * 3
    assert [(KD[row], CONTROL[row]) for row in worse] == [(False, True)] * 3
    assert len({*drawn, *better, *worse}) == 12
    turned = {name: table.iloc[::-1].reset_index(drop=True) for name, table in tables.items()}
    assert [one.instruction for one in choose(turned)] == [one.instruction for one in choose(tables)]


def test_over_many_rows_the_draw_is_a_fair_one() -> None:
    right = 0
    for run in range(200):
        tables = _tables(KD, CONTROL)
        for table in tables.values():
            table["row_id"] = [f"{run} {row}" for row in range(N)]
        right += sum(KD[row] for row in _places(tables, "at random"))
    assert right / 1200 == pytest.approx(2 / 3, abs=0.05)


def test_unchecked_the_widest_gaps_in_loss_decide_on_each_side() -> None:
    losses = tuple(1.0 + (row - 150) / 100 for row in range(N))
    tables = _tables(None, None, losses)
    drawn = set(_places(tables, "at random"))
    assert _places(tables, "better with kd") == [row for row in range(N) if row not in drawn][:3]
    assert _places(tables, "better with control") == [row for row in range(N)[::-1] if row not in drawn][:3]


def test_the_page_says_how_each_was_chosen_and_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.report.page.plots", lambda data: {})
    one = sample_report().examples[0]
    why = ("at random", "better with kd", "better with control")
    data = sample_report(examples=[one.model_copy(update={"chosen": chosen}) for chosen in why])
    said = {title: how for title, how, _ in groups(data)}
    assert said == {
        "At random": "1 of the 640 held-out requests, drawn by their ids: what the answers are like.",
        "Right with SFT+KD alone": "1 of the 81 that SFT+KD answers correctly and SFT control does not.",
        "Right with SFT control alone": "1 of the 24 that SFT control answers correctly and SFT+KD does not.",
    }
    part = render_page(data).split('<section id="examples">')[1]
    for title, how in said.items():
        assert f'<summary>{title}</summary>\n    <p class="quiet">{how}</p>' in part
