"""On-policy rounds on the page: what the student wrote in each, how near it was to its teacher, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from infra.store.artifacts import Record
from tasks.evaluate.variants import CONTINUED, round_name
from tasks.stats.intervals import Numbers
from tasks.text.markdown import markdown_text, table

_STAGES = ("rollout", "logits", "own", "overlap", "validation_scores", "validation", "round")
_MEASURED = ("agreement", "shared", "kl", "own_kl", "entropy")


NOTE = (
    "Entropy, same top 1, same top K and KL on own text (from student to teacher, of what was drawn) are those of the "
    "student that wrote a round’s answers, before it was trained on them. Of both the top K are known: entropy is "
    "at least so large, and the KL is an estimate without bias at rounds.temperature=1 and rounds.top_p=1 alone."
)


class RoundSummary(Numbers):
    """A round: the answers that it began with, written by the student of the round before, and the student after it."""

    number: int
    is_trained: bool = Field(description="False where it was stopped before")
    answers: int = Field(description="that were written, those left out among them")
    answer_tokens: float = Field(description="mean length")
    cut_off: float = Field(description="share of the answers")
    left_out: float = Field(description="share of the answers, those cut off among them")
    coverage: float = Field(description="mean probability that the teacher's top K hold on these answers")
    agreement: float = Field(description="share of their tokens that both find likeliest")
    shared: float = Field(description="share of the teacher's top K that are in the student's")
    kl: float = Field(description="KL(teacher ‖ student) on them in nats a token, at least")
    own_kl: float = Field(description="KL(student ‖ teacher) in nats a token, from what was drawn at temperature 1")
    entropy: float = Field(description="of the student in nats a token, at least")
    by_position: dict[str, dict[str, float]] = Field(description="agreement, kl and the like by position in the answer")
    validation_kl: float | None = Field(None, description="KL to the teacher on the validation part after it, at least")
    seconds: float = Field(description="of all its stages, when they were made")


class RoundsSummary(Numbers):
    """All rounds. `asked` were asked for; `said` is why there are fewer, and what should be looked at."""

    asked: int
    rounds: list[RoundSummary]
    given_coverage: float = Field(description="as `coverage`, on the rows that kd was trained on")
    validation_kl: float | None = Field(None, description="before the first round")
    said: list[str] = Field([])


def gather(records: Mapping[str, Record], asked: int, to_quantise: str | None = None) -> RoundsSummary | None:
    """From the records of a run's stages, by title; None where nothing was rolled out.

    `to_quantise` is the student that was asked for in other formats: of a round that was not done there is none.
    """
    found = []
    for number in range(1, asked + 1):
        if f"overlap_{number}" in records:
            found.append(_round(records, number))
    if not found:
        return None
    looked = [f"{what}_{number}" for number in range(asked + 1) for what in ("overlap", "validation")]
    said = [sentence for title in looked if title in records for sentence in records[title].facts["said"]]
    if to_quantise and to_quantise not in records:
        said.append(
            f"nothing was quantised, because {to_quantise} was not done: name another student (quantise.student)"
        )
    return RoundsSummary(
        asked=asked,
        rounds=found,
        given_coverage=records["logits"].facts["coverage"]["mean"],
        validation_kl=_validation_kl(records, 0),
        said=said,
    )


def _round(records: Mapping[str, Record], number: int) -> RoundSummary:
    rollout, overlap = records[f"rollout_{number}"], records[f"overlap_{number}"].facts
    of_round = [records[title] for what in _STAGES if (title := f"{what}_{number}") in records]
    return RoundSummary(
        number=number,
        is_trained=round_name(number) in records,
        answers=rollout.counts["rows"] + rollout.counts["rejected"],
        coverage=records[f"logits_{number}"].facts["coverage"]["mean"],
        validation_kl=_validation_kl(records, number),
        seconds=sum(record.seconds for record in of_round),
        **{name: overlap[name] for name in ("answer_tokens", "cut_off", "left_out", "by_position", *_MEASURED)},
    )


def _validation_kl(records: Mapping[str, Record], number: int) -> float | None:
    title = f"validation_{number}"
    return float(records[title].facts["kl"]) if title in records else None


def rows(found: RoundsSummary, variants: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row a round, as text; `variants` are the report's, for what its student came to on held-out rows."""
    return [_row(found, of, variants.get(round_name(of.number))) for of in found.rounds]


def _row(found: RoundsSummary, of: RoundSummary, after: Any) -> dict[str, str]:
    cells = {
        "round": str(of.number),
        "answers": f"{of.answers:,}",
        "tokens an answer": f"{of.answer_tokens:,.1f}",
        "cut off": _percent(of.cut_off),
        "left out": _percent(of.left_out),
        "entropy": f"{of.entropy:.3f}",
        "same top 1": _percent(of.agreement),
        "same top K": _percent(of.shared),
        "KL on own text": f"{of.own_kl:.3f}",
        "top-K coverage": _percent(of.coverage),
    }
    if found.validation_kl is not None:
        cells["validation KL after"] = "–" if of.validation_kl is None else f"{of.validation_kl:.4f}"
    if after is not None and after.exec_accuracy is not None:
        cells["right after"] = _percent(after.exec_accuracy)
    cells["KL on references after"] = "–" if after is None else f"{after.kl_to_teacher:.3f}"
    minutes = of.seconds / 60
    return cells | {"time": f"{minutes:,.1f} min" if minutes >= 1 else f"{of.seconds:,.0f} s"}


def sentences(found: RoundsSummary, variants: Mapping[str, Any]) -> list[str]:
    """What the rounds came to in words; whether a difference is more than chance, the paired tests say."""
    trained = [of for of in found.rounds if of.is_trained]
    said = [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in found.said]
    if not trained:
        return said
    of_rounds = f"{len(trained)} of at most {found.asked} rounds {'was' if len(trained) == 1 else 'were'} done"
    last, control = variants.get(round_name(trained[-1].number)), variants.get(CONTINUED)
    if last is not None and control is not None:
        of_rounds += (
            f": KL to the teacher on the held-out references is {last.kl_to_teacher:.3f} nats a token after the last, "
            f"{control.kl_to_teacher:.3f} after as many steps of KD without rounds"
        )
        if last.exec_accuracy is not None and control.exec_accuracy is not None:
            of_rounds += (
                f", and {_percent(last.exec_accuracy)} against {_percent(control.exec_accuracy)} are answered right"
            )
    first = found.rounds[0]
    held = (
        f"The teacher’s top K hold {_percent(first.coverage)} of its probability on what the student wrote, "
        f"{_percent(found.given_coverage)} on the rows of KD"
    )
    return [*said, f"{of_rounds}.", f"{held}."]


def markdown(found: RoundsSummary, variants: Mapping[str, Any]) -> list[str]:
    """The section as Markdown lines."""
    cells = rows(found, variants)
    shown = table(list(cells[0]), [list(row.values()) for row in cells])
    said = [f"- {markdown_text(sentence)}" for sentence in sentences(found, variants)]
    return ["## On-policy rounds", "", *said, "", *shown, "", NOTE, ""]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
