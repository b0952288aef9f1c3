"""The plan for people: problems first, then the stages, for a terminal and for the Prefect UI."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.plan.model import Plan, Problem, StagePlan
from tasks.text.markdown import table
from tasks.text.units import amount, size

PlanRow = dict[str, str]


def plan_table(plan: Plan) -> Group:
    """The plan for a terminal."""
    parts: list[RenderableType] = [Text.assemble((plan.title, "bold"), f" · plan for {_hardware(plan)}, nothing spent")]
    if plan.problems:
        parts += ["", *(_problem(problem) for problem in plan.problems)]
    parts += ["", _table(stage_rows(plan))]
    if plan.agents:
        parts += ["", _table(agent_rows(plan))]
    facts = Table.grid(padding=(0, 2))
    for name, text in _facts(plan).items():
        facts.add_row(Text(name, style="bold"), Text(text))
    facts.add_row(Text("assumed", style="dim"), Text("; ".join(plan.assumptions), style="dim"))
    return Group(*parts, "", facts)


def plan_markdown(plan: Plan) -> str:
    """The plan for the Prefect UI."""
    lines = [f"# {plan.title}", f"Plan for {_hardware(plan)}; nothing was spent.", ""]
    if plan.problems:
        lines += ["## Problems", *(f"- {'❌' if p.stops else '⚠️'} {p.text}" for p in plan.problems), ""]
    lines += ["## Stages", *_as_table(stage_rows(plan)), ""]
    if plan.agents:
        lines += ["## Agents", *_as_table(agent_rows(plan)), ""]
    lines += [f"- **{name}**: {text}" for name, text in _facts(plan).items()]
    return "\n".join([*lines, "", "## Assumed", *(f"- {text}" for text in plan.assumptions), ""])


def stage_rows(plan: Plan) -> list[PlanRow]:
    """One row a stage, and their sum. Columns that would say nothing are left out."""
    total = {"stage": "all", "time": duration(plan.hours), "device-hours": f"{plan.device_hours:,.1f}"}
    unpriced = any(stage.usd is None for stage in plan.stages)
    total["cost"] = f"{'≥ ' if unpriced else ''}{_usd(plan.usd)}"
    rows = [_stage(stage) for stage in plan.stages]
    rows.append({name: total.get(name, "") for name in rows[0]})
    silent = {"device-hours"} if plan.on_cpu else set()
    silent |= set() if plan.usd else {"cost"}
    return [_without(silent, row) for row in rows]


def agent_rows(plan: Plan) -> list[PlanRow]:
    """One row an agent, and their sum."""
    rows = [
        {
            "agent": agent.agent,
            "requests": f"{agent.requests:,}",
            "prompt tokens": amount(agent.prompt_tokens),
            "answer tokens": amount(agent.completion_tokens),
            "cost": _usd(agent.usd),
        }
        for agent in plan.agents
    ]
    total = {
        "agent": "all",
        "requests": f"{sum(agent.requests for agent in plan.agents):,}",
        "prompt tokens": amount(sum(agent.prompt_tokens for agent in plan.agents)),
        "answer tokens": amount(sum(agent.completion_tokens for agent in plan.agents)),
        "cost": _usd(None if any(a.usd is None for a in plan.agents) else sum(a.usd or 0 for a in plan.agents)),
    }
    silent = set() if any(agent.usd for agent in plan.agents) else {"cost"}
    return [_without(silent, row) for row in [*rows, total]]


def _stage(stage: StagePlan) -> PlanRow:
    row = {
        "stage": stage.name,
        "rows": f"{stage.rows:,}",
        "tokens": "" if stage.tokens is None else amount(stage.tokens),
        "steps": "" if stage.steps is None else f"{stage.steps:,}",
        "memory a device": "" if stage.memory_bytes is None else size(stage.memory_bytes),
        "time": duration(stage.hours) if stage.hours else "–",
        "device-hours": "" if stage.device_hours is None else f"{stage.device_hours:,.1f}",
        "cost": _usd(stage.usd),
    }
    return row | {"memory a device": "", "time": "done"} if stage.done else row


def _facts(plan: Plan) -> dict[str, str]:
    most = "at most " if plan.rows_at_most else ""
    facts = {
        "data": f"{plan.seeds:,} seeds and {plan.heldout:,} held-out rows; {most}{plan.rows:,} training rows of "
        f"{plan.tokens_per_row:,.0f} tokens, {plan.supervised_tokens_per_row:,.0f} of them supervised",
        "an epoch": f"{amount(plan.tokens_per_epoch)} tokens, {amount(plan.supervised_tokens_per_epoch)} supervised",
        "scores": f"{size(plan.store_bytes)} of the teacher's top K",
        "disk": f"{size(plan.disk_bytes)} to write under DISTILFLOW_HOME, {size(plan.disk_free_bytes)} free",
        "a device": f"{size(plan.memory_bytes)} of memory",
    }
    if plan.chosen:
        facts["chosen"] = "; ".join(plan.chosen)
    if plan.judge_requests:
        asked = ", ".join(f"{count:,} for {name}" for name, count in plan.judge_requests.items())
        limit = plan.judge_usd_at_most
        cost = "without a budget (judging.budget_usd)" if limit is None else f"for at most {_usd(limit)}"
        facts["the judge"] = f"{sum(plan.judge_requests.values()):,} requests ({asked}), {cost}"
    return facts


def _hardware(plan: Plan) -> str:
    return f"a CPU with {plan.devices} ranks" if plan.on_cpu else f"{plan.devices} × {plan.device}"


def _problem(problem: Problem) -> Table:
    mark, style = ("✗", "red") if problem.stops else ("!", "yellow")
    line = Table.grid(padding=(0, 1))
    line.add_row(Text(mark, style=f"bold {style}"), Text(problem.text, style=style))
    return line


def _without(silent: set[str], row: PlanRow) -> PlanRow:
    return {name: value for name, value in row.items() if name not in silent}


def _table(rows: list[PlanRow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows[:-1]:
        table.add_row(*row.values(), style="dim" if row.get("time") == "done" else None)
    table.add_row(*rows[-1].values(), style="bold")
    return table


def duration(hours: float) -> str:
    """In the unit that a person would use."""
    if hours == 0:
        return "0"
    if hours < 1 / 60:
        return f"{max(1, round(3600 * hours))} s"
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:,.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


def _usd(cost: float | None) -> str:
    return "–" if cost is None else f"${cost:,.2f}"


def _as_table(rows: list[PlanRow]) -> list[str]:
    return table(list(rows[0]), [list(row.values()) for row in rows])
