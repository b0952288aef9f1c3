"""The whole pipeline through the command line: real SeaweedFS, Prefect, LiteLLM over HTTP, vLLM, 2-rank DeepSpeed."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from infra.store import storage
from tasks.logits.store.parquet import import_parquet
from tests.support import cli
from tests.support.overheard import Overheard, overheard
from tests.support.wait import wait_for

VARIANTS = {"base", "sft", "sft_control", "kd", "teacher"}
DECISIVE = {"exec_accuracy", "cross_entropy", "kl_to_teacher"}
MORE = {"topk_kl", "top1_agreement", "acceptance", "output_tokens", "truncated"}
STAGES = {"seeds", "augment", "sft", "logits", "sft_control", "kd", "evaluate", "report"}


@pytest.fixture(scope="module")
def bucket_env(services: object) -> dict[str, str]:
    return {"DISTILFLOW_BUCKET": "flow-test"}


SECRETS = {
    "OPENAI_API_KEY": "a-providers-key-1f",
    "DISTILFLOW_NOTIFY_URL": "https://hooks.example.com/a-webhook-2e",
    "DATABASE_PASSWORD": "somebody-elses-3d",
}


@pytest.fixture(scope="module")
def first(home: Path, bucket_env: dict[str, str]) -> tuple[str, Overheard]:
    """Output of the first, whole run, and who of its processes was told what."""
    doors = {name: os.environ[name] for name in ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_AUTH_STRING")}
    with overheard(home, SECRETS | doors) as heard:
        done = cli.run("run", *cli.SMALL, **bucket_env, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout, heard


@pytest.fixture(scope="module")
def first_run(first: tuple[str, Overheard]) -> str:
    return first[0]


def _cached(home: Path) -> set[str]:
    return {name for name, stage in cli.results(home)["stages"].items() if stage["cached"]}


def test_a_run_says_what_it_did_and_leaves_numbers_and_a_page(first_run: str, home: Path) -> None:
    for stage in STAGES:
        assert f"✓ {stage} " in first_run
    for word in ("rule-based", "against SFT control", "report.html", "results.json", "http://127.0.0.1:"):
        assert word in first_run
    for noise in ("Warning", "WARN", "Traceback", "deprecated"):
        assert noise not in first_run
    numbers = cli.results(home)
    assert numbers["variants"].keys() == VARIANTS
    for variant in numbers["variants"].values():
        assert variant.keys() == DECISIVE | MORE | {"n", "perplexity", "ece", "intervals"}
        assert variant["n"] == 24
        assert variant["intervals"].keys() == DECISIVE | MORE
        for metric, (low, high) in variant["intervals"].items():
            assert low <= variant[metric] + 1e-9
            assert variant[metric] <= high + 1e-9
    assert numbers["variants"]["teacher"]["exec_accuracy"] > 0.7
    assert numbers["variants"]["teacher"]["kl_to_teacher"] == 0
    assert numbers["variants"]["sft"]["cross_entropy"] < numbers["variants"]["base"]["cross_entropy"]
    assert numbers["stages"].keys() == STAGES
    page = (home / "latest" / "report.html").read_text()
    assert "<html" in page
    for section in ("metrics", "comparisons", "slices", "regressions", "inherited"):
        assert f'<section id="{section}">' in page
    assert "distilflow run --student demo --teacher demo --k 10 --seed 0" in page
    assert "--augmentation.max-rows 200 --sft.max-steps 20 --kd.max-steps 20 --evaluation.max-rows 24" in page
    assert cli.engines() == []


def test_a_secret_is_told_to_those_who_need_it_and_written_by_nobody(
    first: tuple[str, Overheard], home: Path, bucket_env: dict[str, str]
) -> None:
    printed, heard = first
    engines = {"training", "scoring", "evaluation"}
    assert heard.seen >= {"run", "demo LLM", *engines}
    assert heard.told == {
        "OPENAI_API_KEY": {"run"},
        "DISTILFLOW_NOTIFY_URL": {"run"},
        "DATABASE_PASSWORD": {"run"},
        "AWS_SECRET_ACCESS_KEY": {"run", *engines},
        "PREFECT_API_AUTH_STRING": {"run", "Prefect"},
    }
    assert heard.shown == set()
    places = {"seaweedfs/s3.json", "prefect/password"}
    written = {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}
    bucket = f"s3://{bucket_env['DISTILFLOW_BUCKET']}/"
    written |= {name: storage.get(bucket + name) or b"" for name in storage.keys(bucket)} | {"": printed.encode()}
    for secret in heard.secrets.values():
        assert [name for name, data in written.items() if secret.encode() in data and name not in places] == []


@pytest.mark.usefixtures("first_run", "prefect")
def test_the_prefect_ui_has_the_stages_and_the_table() -> None:
    from prefect.client.orchestration import get_client

    async def look() -> tuple[set[str], set[str]]:
        async with get_client() as client:
            tasks = await client.read_task_runs(limit=50)
            artifacts = await client.read_artifacts(limit=200)
            return {task.name.split("-")[0] for task in tasks}, {str(a.key) for a in artifacts}

    tasks, artifacts = asyncio.run(look())
    assert STAGES | {"check"} <= tasks | {"check"}
    shown = {"stages", "report-page", "comparison", "report", "augment-card", "augment-left-out", "sft-progress"}
    assert shown <= artifacts


@pytest.mark.usefixtures("first_run")
def test_rows_and_scores_of_a_run_are_exported(bucket_env: dict[str, str], tmp_path: Path) -> None:
    done = cli.run("export", str(tmp_path / "rows.jsonl"), "--form=sharegpt", **bucket_env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert f"{len(rows)} kept rows" in done.stdout
    assert all(row["conversations"][-1]["from"] == "gpt" for row in rows)
    done = cli.run("export", str(tmp_path / "pairs.jsonl"), "--form=dpo", **bucket_env)
    assert done.returncode == 0, done.stderr
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (
        f"{len(pairs)} preference pairs in {tmp_path / 'pairs.jsonl'} (dpo): {len(pairs)} from rewriting" in done.stdout
    )
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)
    done = cli.run("export", str(tmp_path / "scores.parquet"), "--table=topk", **bucket_env)
    assert done.returncode == 0, done.stderr
    assert sum(1 for _ in import_parquet(tmp_path / "scores.parquet")) == len(rows)
    done = cli.run("export", str(tmp_path / "x.jsonl"), "--artifact=s3://flow-test/nothing/", **bucket_env)
    assert "there is no finished artifact at s3://flow-test/nothing/" in done.stderr
    assert done.returncode == 78


@pytest.mark.usefixtures("first_run")
def test_a_rerun_finds_every_record(home: Path, bucket_env: dict[str, str]) -> None:
    done = cli.run("run", *cli.SMALL, **bucket_env)
    assert done.returncode == 0, done.stderr
    assert _cached(home) == STAGES
    assert "= report" in done.stdout


@pytest.mark.usefixtures("first_run")
def test_a_plan_finds_what_is_done(bucket_env: dict[str, str]) -> None:
    done = cli.run("run", *cli.SMALL, "--plan-only", "--kd.temperature=1.5", **bucket_env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" done") == 4, "of six: kd, and what depends on it, is not"


@pytest.mark.usefixtures("first_run")
def test_changing_k_redoes_logits_and_kd_and_nothing_before(home: Path, bucket_env: dict[str, str]) -> None:
    done = cli.run("run", *cli.SMALL, "--k=4", "--scoring.engine=transformers", **bucket_env)
    assert done.returncode == 0, done.stderr
    assert _cached(home) == {"seeds", "augment", "sft", "sft_control"}


# What makes a stage the first that the first run has not done. The other two trainings run as `sft` does.
CHANGED = {
    "augment": "--augmentation.temperature=0.5",
    "sft": "--sft.learning-rate=1e-3",
    "logits": "--k=9",
    "evaluate": "--evaluation.max-new-tokens=32",
}


@pytest.mark.usefixtures("first_run")
@pytest.mark.parametrize("stage", CHANGED)
def test_ctrl_c_in_a_stage_leaves_no_process(home: Path, bucket_env: dict[str, str], stage: str) -> None:
    where = home / "logs" / "demo-llm.log" if stage == "augment" else home / "work"
    if stage == "augment":
        where.unlink(missing_ok=True)
    process = cli.start("run", *cli.SMALL, CHANGED[stage], **bucket_env)
    own = f"{stage}-{process.pid}-*"
    wait_for(lambda: where.exists() if stage == "augment" else any(where.glob(own)), 180, alive=[process])
    message = cli.interrupt(process)
    assert process.returncode == 130, message
    assert message == "distilflow: stopped; what is finished is kept, the same command continues\n"
    wait_for(lambda: cli.engines() == [])  # guardians are the last to go


@pytest.mark.usefixtures("services")
def test_sigkill_leaves_no_process_and_the_next_run_continues_without_rescoring_for_another_temperature(
    first_run: str, home: Path, bucket_env: dict[str, str]
) -> None:
    """What it made itself is found, as is what the first run has made."""
    words = ["run", *cli.SMALL, "--kd.temperature=1.5"]
    process = cli.start(*words, **bucket_env)
    # its own: one that a Ctrl-C left behind in its first moment lies there until the next engine starts
    wait_for(lambda: any((home / "work").glob(f"evaluate-{process.pid}-*")), 300, alive=[process])
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: cli.engines() == [])

    done = cli.run(*words, **bucket_env)
    assert done.returncode == 0, done.stderr
    assert _cached(home) == {"seeds", "augment", "sft", "logits", "sft_control", "kd"}
    for name, stage in cli.results(home)["stages"].items():
        assert (stage["uri"] in first_run) == (name not in ("kd", "evaluate", "report")), name
    assert list((home / "work").iterdir()) == []


def test_an_experiment_finds_what_runs_have_made_and_answers_its_question(
    first_run: str, home: Path, bucket_env: dict[str, str]
) -> None:
    """The order of SFT and KD: of three runs the first is the one above, and the others share all but KD with it."""
    shared = {word.removeprefix("--").split("=")[0].replace("-", "_"): int(word.split("=")[1]) for word in cli.SMALL}
    done = cli.run("experiment", "order", "--repeats=1", f"--shared={json.dumps(shared)}", **bucket_env)
    assert done.returncode == 0, done.stderr
    assert "4 arms, 1 seed\n" in done.stdout
    for stage in ("sft", "logits", "sft_control"):
        assert done.stdout.count(f"= {stage} ") == 3
    assert done.stdout.count("✓ sft_after_kd ") == 1
    page = (home / "latest" / "experiment.html").read_text()
    assert "black-box alone (SFT twice)" in page
    assert "KD, then SFT" in page
    told = json.loads((home / "latest" / "experiment.json").read_text())
    assert told["verdict"].startswith("Take ")
    assert len(told["rows"]) == 4
