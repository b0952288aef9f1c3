"""The benchmarks in a run of the command line: win rates in the report, judged once; nothing where none is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stage import STAGES
from infra.orchestration.run import parameters_of
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.evaluate.settings import Evaluation
from tasks.logits.settings import Scoring
from tasks.models import ModelSource
from tests.support import cli
from tests.support.endpoint import endpoint, tell
from tests.support.eval_data import QUESTIONS as QUESTIONS_OF_OWN_TASK
from tests.support.eval_data import own_task, small_punkt

VARIANTS = {"base", "sft", "sft_control", "kd", "teacher"}
QUESTIONS = 6
PUBLISHED = Path(__file__).parents[1] / "unit" / "tasks" / "evaluate" / "ifeval_published.jsonl"
WORDS = [
    *("run", "--augmentation.no-enabled", "--sft.max-steps=3", "--kd.max-steps=3", "--run.processes=1"),
    *("--scoring.engine=transformers", "--evaluation.max-new-tokens=16", "--evaluation.max-rows=16"),
]
DEMO = ["--benchmarks.alpaca-eval=demo", "--benchmarks.max-questions=40"]


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    with endpoint(judge="long") as url:
        yield url


@pytest.fixture(scope="module")
def judged_words(judge: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with AlpacaEval over a file of six questions, whose reference is shorter than any answer, then longer."""
    path = tmp_path_factory.mktemp("references") / "references.json"
    lengths = [0, 0, 0, 10_000, 10_000, 10_000]
    entries = [{"instruction": f"Count the flights of {n}", "output": "x" * n} for n in lengths]
    path.write_text(json.dumps(entries))
    return [
        *WORDS,
        f"--benchmarks.alpaca-eval={path}",
        "--benchmarks.max-new-tokens=16",
        "--judge-model=openai/judge",
        f"--judging.api-base={judge}",
    ]


@pytest.fixture(scope="module")
def env(services: object) -> dict[str, str]:
    return {"DISTILFLOW_BUCKET": "judged", "OPENAI_API_KEY": "none"}


@pytest.fixture(scope="module")
def without(env: dict[str, str], home: Path) -> dict[str, Any]:
    """Results of a run that asks for no benchmark."""
    done = cli.run(*WORDS, **env)
    assert done.returncode == 0, done.stderr
    assert "benchmark" not in done.stdout
    assert 'id="benchmarks"' not in (home / "latest" / "report.html").read_text()
    return cli.results(home)


@pytest.fixture(scope="module")
def judged(without: dict[str, Any], judged_words: list[str], env: dict[str, str], home: Path) -> dict[str, Any]:
    """Results of the same run with AlpacaEval."""
    done = cli.run(*judged_words, **env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return cli.results(home)


def test_without_a_data_source_nothing_runs(without: dict[str, Any]) -> None:
    assert without["benchmarks"] == {}
    assert not {"benchmarks", "answers"} & without["stages"].keys()


def test_every_variant_has_its_win_rate_in_the_report(judged: dict[str, Any], judge: str, home: Path) -> None:
    rates = judged["benchmarks"]["AlpacaEval 2.0, win rate"]
    assert rates.keys() == VARIANTS
    assert {rate["value"] for rate in rates.values()} == {0.5}  # the judge favours the longer of the two
    assert {rate["n"] for rate in rates.values()} == {QUESTIONS}
    assert "AlpacaEval 2.0, length-controlled" in judged["benchmarks"]
    page = (home / "latest" / "report.html").read_text()
    for words in ('id="benchmarks"', "AlpacaEval 2.0, win rate", "no position bias is detected", "openai/judge"):
        assert words in page
    assert "No significant difference between SFT + KD and SFT control in AlpacaEval win rate" in page
    assert "| AlpacaEval 2.0, win rate | 50.0 % (" in (home / "latest" / "report.md").read_text()
    others = {name for name, stage in judged["stages"].items() if not stage["cached"]}
    of_protection = {"protect", "augment"}  # whose rows are the same, so that nothing after them is made again
    assert others == {"answers", "benchmarks", "report"} | of_protection


def test_a_rerun_asks_the_judge_nothing(
    judged: dict[str, Any], judged_words: list[str], judge: str, env: dict[str, str], home: Path
) -> None:
    asked = tell(judge, "stats")["requests"]
    assert 0 < asked <= 2 * QUESTIONS * len(VARIANTS)
    done = cli.run(*judged_words, **env)
    assert done.returncode == 0, done.stderr
    assert tell(judge, "stats")["requests"] == asked
    assert all(stage["cached"] for stage in cli.results(home)["stages"].values())
    assert cli.results(home)["benchmarks"] == judged["benchmarks"]


def test_peoples_labels_cost_a_report_and_no_judgment(
    judged: dict[str, Any], judged_words: list[str], judge: str, env: dict[str, str], home: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("question,variant,verdict\n0,ours,win\n5,ours,loss\n1,sft,win\n")
    asked = tell(judge, "stats")["requests"]
    done = cli.run(*judged_words, f"--judging.labels={labels}", **env)
    assert done.returncode == 0, done.stderr
    assert tell(judge, "stats")["requests"] == asked
    assert {name for name, stage in cli.results(home)["stages"].items() if not stage["cached"]} == {"report"}
    page = (home / "latest" / "report.html").read_text()
    assert "AlpacaEval: openai/judge and people agree on 100.0 % (" in page
    assert "Of 3 labels of people, 3 are on answers that a judge judged." in page
    labels.write_text("question,variant,verdict\n0,ours,great\n")
    done = cli.run(*judged_words, f"--judging.labels={labels}", **env)
    assert done.returncode == 78
    assert "row 1: `verdict` should be win, tie, loss or a score from 1 to 10, not 'great'" in done.stderr


@pytest.mark.usefixtures("without")
def test_the_demo_judges_its_own_heldout_rows_by_rule(env: dict[str, str], home: Path) -> None:
    done = cli.run(*WORDS, *DEMO, **env)
    assert done.returncode == 0, done.stderr
    rates = {name: rate["value"] for name, rate in cli.results(home)["benchmarks"]["AlpacaEval 2.0, win rate"].items()}
    assert rates["base"] < 0.1  # its queries return nothing that was asked for
    assert rates["teacher"] > 0.3  # as good as the references wins half
    assert "no position bias" in (home / "latest" / "report.html").read_text()


@pytest.mark.usefixtures("without")
def test_mt_bench_ifeval_probes_and_lm_eval_go_through_a_run_together(
    judge: str, env: dict[str, str], home: Path, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    entry = {"question_id": 81, "category": "math", "turns": ["Count.", "Again."], "reference": ["quality 3", "4"]}
    questions.write_text(json.dumps(entry))
    words = [
        *WORDS,
        f"--benchmarks.mt-bench={questions}",
        f"--benchmarks.ifeval={PUBLISHED}",
        "--benchmarks.probes=builtin",
        "--benchmarks.harness=own_choice",
        f"--benchmarks.harness-task-folder={own_task(tmp_path)}",
        "--benchmarks.no-harness-chat-template",
        "--benchmarks.harness-max-length=256",
        "--benchmarks.max-new-tokens=16",
        "--judge-model=openai/judge",
        f"--judging.api-base={judge}",
    ]
    done = cli.run(*words, **env, NLTK_DATA=str(small_punkt(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = cli.results(home)["benchmarks"]
    page = (home / "latest" / "report.html").read_text()
    for measure in ("MT-Bench, both turns", "MT-Bench, turn 2", "IFEval, prompts followed, strict", "Probe: bias"):
        assert told[measure].keys() == VARIANTS, measure
        assert measure in page
    assert {rate["value"] for rate in told["MT-Bench, both turns"].values()} == {1.0}  # no answer writes its quality
    assert {rate["n"] for rate in told["IFEval, prompts followed, strict"].values()} == {6}
    assert {rate["value"] for rate in told["Probe: hallucination"].values()} == {0.0}
    (accuracy,) = (rates for measure, rates in told.items() if measure.startswith("lm-eval, own_choice: acc"))
    assert {rate["n"] for rate in accuracy.values()} == {len(QUESTIONS_OF_OWN_TASK)}
    assert accuracy.keys() == VARIANTS


@pytest.mark.usefixtures("without")
def test_a_judge_that_cannot_judge_is_refused_at_the_start(judged_words: list[str], env: dict[str, str]) -> None:
    words = [word for word in judged_words if not word.startswith("--judge-model")]
    done = cli.run(*words, **env)
    assert done.returncode == 78
    assert "judge_model=demo is a rule that only compares answers to the data shipped with it" in done.stderr
    assert "seeds" not in done.stdout


@pytest.mark.parametrize("name", ["benchmark_answers", "lm_eval"])
def test_a_gpu_pool_understands_what_it_is_asked_to_generate(name: str) -> None:
    models = {"kd": ModelSource(name="kd", path="/models/kd")}
    given: dict[str, Any] = {"models": models, "options": Benchmarks(ifeval="s3://b/x", harness=("gsm8k",))}
    given |= {"evaluation": Evaluation(samples=2)} if name == "benchmark_answers" else {"scoring": Scoring()}
    asked = STAGES[name](**given)
    told = parameters_of(asked)
    assert told["stage"] == name
    assert STAGES[name].model_validate(json.loads(json.dumps(told["arguments"]))) == asked
