"""The comparison as a table for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from infra.artifacts import ArtifactReader, ArtifactRef
from tasks.report.data import ReportData
from tasks.report.page import comparison_rows, verdict


def comparison_table(report: ArtifactRef) -> Group:
    """The verdict, and every variant's numbers."""
    data = ReportData.model_validate_json(ArtifactReader(report).read("data.json"))
    rows = comparison_rows(data)
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return Group(Text(verdict(data)), Text(""), table, Text(""))
