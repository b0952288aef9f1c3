"""The comparison as a table for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.report.page import comparison_rows, decision, verdict
from tasks.report.stage import report_data

_ON_THE_PAGE = {"95 % interval", "KL to teacher", "API cost"}  # what a terminal has no room for


def comparison_table(report: ArtifactRef) -> Group:
    """The verdict, and every variant's numbers."""
    data = report_data(report)
    return _table(f"{decision(data)} {verdict(data)}", comparison_rows(data))


def leaderboard_table(board: ArtifactRef) -> Group:
    """The verdict, every combination's numbers, and those over seeds where several were asked for."""
    content = ArtifactReader(board).read_json("leaderboard.json")
    board_table = _table(content["verdict"], [_without(_ON_THE_PAGE, row) for row in content["rows"]])
    if not content["over_seeds"]:
        return board_table
    seeds = [_without(_ON_THE_PAGE, row) for row in content["over_seeds"]]
    return Group(board_table, _table("Over seeds, mean ± standard deviation:", seeds))


def experiment_table(page: ArtifactRef) -> Group:
    """The verdict, and the arms."""
    content = ArtifactReader(page).read_json("experiment.json")
    shown = [dict(list(row.items())[:4]) for row in content["rows"]]  # a terminal has no room for the others
    return _table(content["verdict"], shown) if shown else Group(Text(content["verdict"]))


def _without(left_out: set[str], row: dict[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in left_out}


def _table(sentence: str, rows: list[dict[str, str]]) -> Group:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(rows[0]):
        is_name = index == 0 or name == "combination"
        table.add_column(name, justify="left" if is_name else "right", overflow="fold", no_wrap=is_name)
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return Group(Text(sentence), Text(""), table, Text(""))
