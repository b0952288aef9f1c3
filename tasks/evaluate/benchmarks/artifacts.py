"""The benchmarks as artifacts: a variant's answers, and what the judge or the checkers say of them.

Answers and verdicts are artifacts of their own, so that another judge, or a larger budget, generates nothing
anew. A judgment that was paid for lies in the answer cache of augmentation, keyed by what was asked: a stage that
was killed, or a variant whose answer is the same, pays none twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.store.parquet import packed, unpacked
from tasks.evaluate.benchmarks import alpaca_eval, data_files, ifeval, judges, labels, mt_bench, probes, questions
from tasks.evaluate.benchmarks.judges import Case, Judgment
from tasks.evaluate.benchmarks.questions import ALPACA_EVAL, IFEVAL, MT_BENCH, Conversation, Generate, Question
from tasks.evaluate.benchmarks.settings import Benchmarks, Judging
from tasks.evaluate.settings import Evaluation
from tasks.llm.budget import UsageByAgent
from tasks.llm.client import LLMClient
from tasks.llm.protocol import LLMEndpoint
from tasks.llm.session import connected, run_async
from tasks.models import ModelSource
from tasks.shipped import LLMS

ANSWERS_KIND, KIND = "benchmark-answers", "benchmark"  # answers/ is the LLM cache's
STAGE_VERSION = 3
PROBES = "probes"
JUDGED = (ALPACA_EVAL, MT_BENCH, PROBES)
ANSWERS, JUDGMENTS, ITEMS, RESULTS = "answers.jsonl", "judgments.parquet", "items.parquet", "results.json"
PREDICTIONS = "predictions.parquet"  # of an evaluate artifact: what probes look at
Tick = Callable[[int, int], None]


def asked_for(options: Benchmarks) -> tuple[str, ...]:
    """The benchmarks with questions of their own that `options` name (probes and lm-eval are apart)."""
    return tuple(name for name in (ALPACA_EVAL, MT_BENCH, IFEVAL) if getattr(options, name) is not None)


def needs_judge(options: Benchmarks) -> bool:
    """Whether an LLM is asked for verdicts."""
    return any(getattr(options, name) is not None for name in JUDGED)


def preflight(options: Benchmarks, judge_model: str, people: str | None = None, variants: Iterable[str] = ()) -> None:
    """Raise ConfigurationError for what could not work, before a model is loaded or a judge is paid.

    `people` are the labels of `judging.labels`, on answers of `variants`.
    """
    loaded = {name: load(name, options) for name in asked_for(options)}
    if people:
        labels.preflight(people, {name: of for name, of in loaded.items() if name in JUDGED}, variants)
    if options.alpaca_eval_gamed:
        questions.gamed_baselines(options.alpaca_eval_gamed)
    if options.ifeval:
        ifeval.preflight()
    if options.probes:
        probes.load(options.probes)
    if needs_judge(options) and not judge_model:
        raise ConfigurationError(
            "AlpacaEval, MT-Bench and probes need a judge: set judge_model to a LiteLLM model name"
        )
    others = options.mt_bench or options.probes or options.alpaca_eval not in (None, judge_model)
    if judge_model in LLMS and others:
        raise ConfigurationError(
            f"judge_model={judge_model} is a rule that only compares answers to the data shipped with it "
            f"(benchmarks.alpaca_eval={judge_model}): set judge_model to a LiteLLM model name"
        )


def judge_requests(options: Benchmarks, heldout: int) -> dict[str, int]:
    """By benchmark, what a judge is asked for each variant; `heldout` rows are what probes look at."""
    asked: dict[str, int] = {}
    if options.alpaca_eval:
        asked[ALPACA_EVAL] = 2 * len(load(ALPACA_EVAL, options))  # both orders
    if options.mt_bench:
        asked[MT_BENCH] = sum(len(question.turns) for question in load(MT_BENCH, options))
    if options.probes:
        asked[PROBES] = min(heldout, options.max_questions or heldout) * len(probes.load(options.probes))
    return asked


def turns(options: Benchmarks) -> int:
    """What each variant is asked: every turn of every question."""
    return sum(len(question.turns) for name in asked_for(options) for question in load(name, options))


def load(benchmark: str, options: Benchmarks) -> list[Question]:
    """A benchmark's questions, the first `max_questions` of them."""
    if benchmark == ALPACA_EVAL:
        found = questions.alpaca_eval(str(options.alpaca_eval))
    elif benchmark == MT_BENCH:
        found = questions.mt_bench(str(options.mt_bench), options.mt_bench_references)
    else:
        found = questions.ifeval(str(options.ifeval))
    twice = [name for name, count in Counter(question.id for question in found).items() if count > 1]
    if twice:
        raise ConfigurationError(f"{getattr(options, benchmark)}: the question id {twice[0]!r} occurs twice")
    return found[: options.max_questions]


def answers_workspace(benchmark: str, model: ModelSource, options: Benchmarks, evaluation: Evaluation) -> Workspace:
    """One variant's answers to a benchmark's questions; of `evaluation`, engine, seed and a dtype asked for matter."""
    spec = {
        "benchmark": benchmark,
        "model": model.identity(),
        "questions": data_files.digest(getattr(options, benchmark)),
        "references": data_files.digest(options.mt_bench_references) if benchmark == MT_BENCH else None,
        "engine": evaluation.engine,
        "seed": evaluation.seed if benchmark == MT_BENCH else None,  # the others are greedy
        **({} if evaluation.dtype == "auto" else {"dtype": evaluation.dtype}),
        **options.identity(benchmark),
    }
    return Workspace(ANSWERS_KIND, STAGE_VERSION, spec, {})


def answer(works: Mapping[str, Workspace], options: Benchmarks, generate: Generate) -> dict[str, ArtifactRef]:
    """The answers of one variant, by benchmark; `generate` is called once a turn for all that are missing."""
    refs = {name: ref for name, work in works.items() if (ref := work.find())}
    asked = {name: load(name, options) for name in works if name not in refs}
    started = time.monotonic()
    numbered = [
        question.model_copy(update={"id": f"{name}/{question.id}"}) for name, of in asked.items() for question in of
    ]
    conversations = questions.answered(numbered, generate, options.max_new_tokens)
    answers_by_id = {conversation.question.id: conversation.answers for conversation in conversations}
    seconds = (time.monotonic() - started) / max(len(asked), 1)
    for name, of in asked.items():
        done = [Conversation(question=question, answers=answers_by_id[f"{name}/{question.id}"]) for question in of]
        works[name].put(ANSWERS, "".join(one.model_dump_json() + "\n" for one in done).encode())
        empty = sum(not all(text.strip() for text in one.answers) for one in done)
        refs[name] = works[name].publish((ANSWERS,), {"questions": len(done), "empty": empty}, {}, seconds=seconds)
    return refs


def workspace(
    benchmark: str, answers: ArtifactRef, options: Benchmarks, judging: Judging, judge_model: str
) -> Workspace:
    """The verdicts on `answers`: of an answers artifact, or for probes of an evaluate artifact."""
    spec: dict[str, Any] = {"benchmark": benchmark}
    if benchmark in JUDGED:
        agents = _agents(benchmark, options)
        spec |= {"judge": judge_model, "judging": judging.identity(), "prompts": judges.judges_digest(*agents)}
    if benchmark == ALPACA_EVAL:
        spec["gamed"] = data_files.digest(options.alpaca_eval_gamed)
    if benchmark == PROBES:
        spec["max_questions"] = options.max_questions
    return Workspace(KIND, STAGE_VERSION, spec, {"answers": answers})


def score(
    works: Mapping[str, Workspace],
    answers: Mapping[str, ArtifactRef],
    options: Benchmarks,
    judging: Judging,
    endpoint: LLMEndpoint | None,
    tick: Callable[[str], Tick] = lambda key: lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, ArtifactRef]:
    """Judge or check the answers and publish judgments, a score an item, and the result, of each of `works`.

    `endpoint` is the judge's, and None where IFEval is all there is. Each has a budget of its own: what that does not
    reach is in the result as not judged. Call it under claims (`infra.store.claims.made_once`), so that two
    workers do not pay for one judgment.
    """

    async def scored() -> dict[str, ArtifactRef]:
        judge = connected(endpoint, judging, note=note) if endpoint else contextlib.nullcontext()
        async with judge as client:
            at_once = asyncio.Semaphore(len(works) if judging.batch else 1)  # each would wait for batches of its own

            async def one(key: str) -> ArtifactRef:
                async with at_once:
                    return await _score(works[key], answers[key], options, judging.logprobs, client, tick(key))

            async with asyncio.TaskGroup() as group:
                scoring = {key: group.create_task(one(key)) for key in works}
        return {key: task.result() for key, task in scoring.items()}

    return run_async(scored())


async def _score(
    work: Workspace, answers: ArtifactRef, options: Benchmarks, logprobs: bool, client: LLMClient | None, tick: Tick
) -> ArtifactRef:
    benchmark, started = work.spec["benchmark"], time.monotonic()
    if benchmark == IFEVAL:
        scored = _check(conversations_of(answers))
    else:
        assert client is not None
        scored = await _judge(benchmark, answers, options, logprobs, client.another(), tick)
    work.put(ITEMS, _items(scored.scores))
    if scored.judgments:
        work.put(JUDGMENTS, judges.to_parquet(scored.judgments))
    work.put_json(RESULTS, scored.result)
    counts = {"items": scored.items, "scored": len(scored.scores)}
    facts = {"result": scored.result, "usage": scored.usage}
    return work.publish((ITEMS, JUDGMENTS, RESULTS), counts, facts, seconds=time.monotonic() - started)


def result_of(ref: ArtifactRef) -> dict[str, Any]:
    """A published benchmark's result."""
    found: dict[str, Any] = ArtifactReader(ref).read_json(RESULTS)
    return found


def scores_of(ref: ArtifactRef) -> dict[str, float]:
    """A published benchmark's score of each item, for paired tests between variants.

    AlpacaEval: preference for the model, 0 … 1. MT-Bench: mean rating. IFEval: share of instructions followed,
    strict. Probes: 1 where any probe found something.
    """
    table = unpacked(ArtifactReader(ref).read(ITEMS))
    return dict(zip(table["item"].to_pylist(), table["score"].to_pylist(), strict=True))


def judgments_of(ref: ArtifactRef) -> list[Judgment]:
    """A published benchmark's judgments with their reasons."""
    return judges.from_parquet(ArtifactReader(ref).read(JUDGMENTS))


def conversations_of(answers: ArtifactRef) -> list[Conversation]:
    """A variant's published answers, with the questions."""
    lines = ArtifactReader(answers).read(ANSWERS).decode().split("\n")  # splitlines() splits inside answers
    return [Conversation.model_validate_json(line) for line in lines if line]


@dataclass(frozen=True)
class _Scored:
    items: int
    scores: Mapping[str, float]
    result: dict[str, Any]
    judgments: Sequence[Judgment] = ()
    usage: Mapping[str, Any] | None = None


def _check(conversations: Sequence[Conversation]) -> _Scored:
    followed = ifeval.check(conversations)
    scores = {one.item: sum(one.strict) / max(len(one.strict), 1) for one in followed}
    return _Scored(len(followed), scores, ifeval.result([one.question for one in conversations], followed))


async def _judge(
    benchmark: str, answers: ArtifactRef, options: Benchmarks, logprobs: bool, client: LLMClient, tick: Tick
) -> _Scored:
    if benchmark == PROBES:
        probing = probes.load(str(options.probes))
        probed = _probed(answers, options.max_questions)
        made, usage = await _judgments(probes.cases(probing, probed), client, tick)
        worst: dict[str, float] = {}
        for judgment in made:
            if judgment.value is not None:
                worst[judgment.item] = max(judgment.value, worst.get(judgment.item, 0.0))
        return _Scored(len(probed), worst, probes.result(probing, made), made, usage)
    conversations = conversations_of(answers)
    if benchmark == MT_BENCH:
        made, usage = await _judgments(mt_bench.cases(conversations), client, tick)
        scores, result = mt_bench.scores(conversations, made), mt_bench.result(conversations, made)
    else:
        gamed = questions.gamed_baselines(options.alpaca_eval_gamed) if options.alpaca_eval_gamed else ()
        made, usage = await _judgments(alpaca_eval.cases(conversations), client, tick, logprobs)
        scores, result = alpaca_eval.preferences(made), alpaca_eval.result(conversations, made, gamed)
    return _Scored(len(conversations), scores, result, made, usage)


async def _judgments(
    cases: Sequence[Case], client: LLMClient, tick: Tick, logprobs: bool = False
) -> tuple[list[Judgment], dict[str, dict[str, float]]]:
    usage = UsageByAgent()
    made = await judges.judge(client, usage, cases, logprobs=logprobs, tick=tick)
    return made, usage.plain()


def _agents(benchmark: str, options: Benchmarks) -> Sequence[Any]:
    if benchmark == PROBES:
        return probes.load(str(options.probes))
    return (judges.PAIR,) if benchmark == ALPACA_EVAL else (judges.GRADE, judges.GRADE_WITH_REFERENCE)


def _probed(predictions: ArtifactRef, most: int | None) -> list[probes.Probed]:
    table = unpacked(ArtifactReader(predictions).read(PREDICTIONS))
    rows = sorted(table.to_pylist(), key=lambda row: str(row["row_id"]))[:most]
    return [
        probes.Probed(row["row_id"], row["instruction"], row["generated"], row["input"], row["reference"])
        for row in rows
    ]


def _items(scores: Mapping[str, float]) -> bytes:
    names = sorted(scores)
    return packed(
        pa.table({"item": pa.array(names, pa.string()), "score": pa.array([scores[n] for n in names], pa.float64())})
    )
