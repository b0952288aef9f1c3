"""`distilflow estimate` and `distilflow export`: what augmentation will cost, and its rows for other programs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from rich.table import Table

from flows.commands.show import tables
from flows.outcome import latest
from flows.params import preset_for, with_preset
from infra.console import Console
from infra.errors import ConfigurationError
from infra.files import whole
from infra.services.embedded import embedded_storage
from infra.stage import Unseen, make
from infra.store import storage
from infra.store.artifacts import ArtifactRef, artifact_at, facts_of
from tasks.augment.estimate import Estimate, estimate
from tasks.augment.export import export
from tasks.augment.own_prompts import write
from tasks.augment.pairs import export_pairs
from tasks.augment.settings import Augmentation, Format, RowTable
from tasks.llm.budget import Usage
from tasks.llm.endpoint import llm_endpoint
from tasks.seeds.account import sentences
from tasks.seeds.settings import Reading
from tasks.seeds.stage import LoadSeeds, Sources
from tasks.shipped import LLMS

console = Console(highlight=False)


def print_estimate(
    student: str,
    seeds: str,
    agent_model: str,
    heldout: str | None,
    heldout_share: float,
    data: Reading | None,
    augmentation: Augmentation | None,
    sample: int,
    ask: int | None,
    show: bool,
) -> None:
    """Say what the agents will be asked and what it will cost."""
    options = with_preset(augmentation, preset_for(student).augmentation)
    if show and not ask:
        raise ConfigurationError(
            "--show shows what the agents made of seeds: say how many they are asked, --ask 5 --show"
        )
    if not options.enabled:
        raise ConfigurationError("augmentation is off, so the agents are asked nothing and cost nothing")
    with embedded_storage(), llm_endpoint(agent_model, options, lambda note: None) as endpoint:
        storage.ensure_bucket()
        sources = Sources.of(seeds, heldout, None)
        reading = data or Reading()
        asked = LoadSeeds(sources=sources, heldout_share=heldout_share, response_required=False, reading=reading)
        rows = asked.result(make(asked, Unseen()).refs)
        found = estimate(rows, options, endpoint, sample=ask or sample, paid=ask is not None)
        left_out = sentences(facts_of(rows))
    for sentence in left_out:
        console.print(sentence, markup=False, soft_wrap=True)
    if show:
        for table in tables(found):
            console.print(table)
    console.print(_table(found, agent_model))
    console.print(_notes(found, options, agent_model in LLMS), soft_wrap=True)


def write_prompts(folder: Path) -> None:
    """Write the agents' prompts to edit."""
    written = write(folder)
    names = ", ".join(path.name for path in written)
    console.print(
        f"{names} in {folder}: edit or delete some, then run with --augmentation.prompts {folder}", soft_wrap=True
    )


def export_rows(to: Path, form: Format | None, table: RowTable, artifact: str | None) -> None:
    """Write augmented rows, preference pairs of them, or the teacher's scores, to a file."""
    if table == "topk":
        _export_scores(to, form, artifact)
        return
    if form == "dpo":
        _export_pairs(to, table, artifact)
        return
    form = form or ("parquet" if to.suffix == ".parquet" else "alpaca")
    with embedded_storage():
        storage.ensure_bucket()
        done = export(of_stage("augment", artifact), to, form, table)
    console.print(f"{done.rows:,} {table} rows in {to} ({form})", soft_wrap=True)
    if done.with_tools:
        console.print(
            f"left out: {done.with_tools:,} rows that use tools, which {form} cannot say: --form messages does",
            soft_wrap=True,
        )


def _export_pairs(to: Path, table: RowTable, artifact: str | None) -> None:
    """Preference pairs as JSONL, and how many of which kind there are."""
    if table != "kept":
        raise ConfigurationError(f"preference pairs are of kept rows: leave out --table {table}")
    with embedded_storage():
        storage.ensure_bucket()
        done = export_pairs(of_stage("augment", artifact), to)
    by_source = ", ".join(f"{count:,} from {source}" for source, count in sorted(done.pairs.items()))
    console.print(f"{done.pairs.total():,} preference pairs in {to} (dpo): {by_source}", soft_wrap=True)
    for reason, count in done.left_out.items():
        if count:
            console.print(f"left out: {count:,} {reason}", soft_wrap=True)


def _export_scores(to: Path, form: Format | None, artifact: str | None) -> None:
    """The top-K store as Parquet columns, as other trainers read them."""
    from tasks.logits.store.parquet import export_parquet
    from tasks.logits.store.reader import TopKReader

    if form not in (None, "parquet"):
        raise ConfigurationError(f"the teacher's scores are exported as parquet, not {form}")
    with embedded_storage():
        storage.ensure_bucket()
        with whole(to) as partial:
            count = export_parquet(TopKReader(of_stage("logits", artifact)), partial)
    console.print(f"the teacher's scores of {count:,} rows in {to} (parquet)", soft_wrap=True)


def of_stage(stage: str, uri: str | None, others: Collection[str] = ()) -> ArtifactRef:
    """The artifact named, which may be of one of the `others` too, or that of the latest run."""
    if uri is None:
        try:
            made = json.loads((latest() / "results.json").read_text())["stages"]
        except FileNotFoundError as error:
            raise ConfigurationError(
                "no run has finished here yet: name the artifact with --artifact s3://…"
            ) from error
        if stage not in made:
            raise ConfigurationError(f"the latest run made no {stage}: it made {', '.join(made)}")
        uri = made[stage]["uri"]
    ref = artifact_at(str(uri))
    if ref.kind != stage and ref.kind not in others:
        raise ConfigurationError(f"{uri} is of the {ref.kind} stage: name an artifact of the {stage} stage")
    return ref


def _table(found: Estimate, agent_model: str) -> Table:
    table = Table(title=f"{found.seeds:,} seeds through {agent_model}", title_justify="left", title_style="bold")
    table.add_column("agent")
    for name in ("requests", "prompt tokens", "answer tokens", "cost"):
        table.add_column(name, justify="right")
    for agent, used in found.usage.items():
        table.add_row(agent, *_numbers(used, found.priced))
    table.add_section()
    table.add_row("all", *_numbers(found.total, found.priced), style="bold")
    return table


def _numbers(used: Usage, priced: bool) -> list[str]:
    cost = f"${used.cost_usd:,.2f}" if priced else "–"
    return [f"{used.requests:,}", f"{used.prompt_tokens:,}", f"{used.completion_tokens:,}", cost]


def _notes(found: Estimate, options: Augmentation, is_ours: bool) -> str:
    notes = []
    if found.paid:
        notes.append(
            f"Measured on {found.sample:,} seeds, which cost ${found.total.paid_usd:,.4f} now; their answers are "
            f"kept, and a run does not pay for them again. About {found.rows:,} rows will come out."
        )
    else:
        notes.append(
            f"A rehearsal with {found.sample:,} of the seeds: answers are taken to be as long as the seeds' own, and "
            f"nothing to be rejected. At most {found.rows:,} rows. Measure it: --ask 20 asks the agents about 20 seeds."
        )
    if is_ours:
        notes.append("The demo LLM is free.")
    elif not found.priced:
        notes.append("LiteLLM knows no price: give it with --augmentation.usd-per-million-tokens IN OUT.")
    elif options.budget_usd is not None and found.total.cost_usd > options.budget_usd:
        share = options.budget_usd / found.total.cost_usd
        notes.append(f"The budget of ${options.budget_usd:,.2f} reaches about {share:.0%} of the seeds.")
    return "\n".join(notes)
