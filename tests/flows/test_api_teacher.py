"""A run whose teacher is an API model: planned in money, distilled on its own answers, reported without distances."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.models import resolve
from tests.support import cli
from tests.support.teacher_api import TeacherAPI, serving

STUDENTS = {"base", "sft", "sft_control", "kd"}
STAGES = {"seeds", "augment", "teacher_answers", "sft", "logits", "sft_control", "kd", "evaluate", "report"}


@pytest.fixture(scope="module")
def words() -> Iterator[list[str]]:
    with serving(TeacherAPI(resolve("demo", "teacher"))) as url:
        yield [
            *("run", "--teacher=openai/ended", "--scoring.engine=api", f"--scoring.api.api-base={url}"),
            *("--scoring.api.temperature=0", "--scoring.api.max-output-tokens=120", "--k=5"),
            *("--scoring.api.usd-per-million-tokens", "1", "2"),
            *("--augmentation.no-enabled", "--sft.max-steps=10", "--kd.max-steps=10", "--evaluation.max-rows=12"),
            "--run.processes=1",
        ]


@pytest.fixture(scope="module")
def environment(services: object) -> dict[str, str]:
    return {"DISTILFLOW_BUCKET": "api-teacher-test"}


def _with_data(words: list[str], folder: Path) -> list[str]:
    data = Path(__file__).parents[2] / "tasks" / "demo" / "data"
    seeds = folder / "seeds.jsonl"
    seeds.write_text("\n".join((data / "seeds.jsonl").read_text().splitlines()[:24]))
    given = [f"--seeds={seeds}", f"--heldout={data / 'heldout.jsonl'}", f"--databases={data / 'databases'}"]
    return [*words, *given]


def test_a_run_learns_from_what_an_api_told(
    home: Path, words: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = _with_data(words, tmp_path_factory.mktemp("data"))
    plan = cli.run(*words, "--plan-only", **environment)
    assert plan.returncode == 0, plan.stderr
    assert "teacher_answers" in plan.stdout
    assert "$" in plan.stdout
    done = cli.run(*words, **environment)
    assert done.returncode == 0, done.stderr
    numbers = cli.results(home)
    assert numbers["stages"].keys() == STAGES
    assert numbers["variants"].keys() == STUDENTS
    for variant in numbers["variants"].values():
        assert variant["kl_to_teacher"] is None
        assert 0 <= variant["exec_accuracy"] <= 1
        assert "topk_kl" not in variant
    page = (home / "latest" / "report.md").read_text()
    assert "KL to the teacher is not known: an API model scores no given text." in page
    assert "answers that openai/ended wrote to the prompts" in page
    assert "--scoring.engine api" in page
    again = cli.run(*words, **environment)
    assert again.returncode == 0, again.stderr
    assert {name for name, stage in cli.results(home)["stages"].items() if stage["cached"]} == STAGES


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--k=21"], "k=21 with scoring.engine=api: providers tell at most 20 alternatives a token"),
        (["--rounds.rounds=1"], "rounds.rounds needs a teacher that scores given texts"),
        (["--fit.keep=0.5"], "fit.keep below 1 needs a teacher that scores given texts"),
        (["--evaluation.teacher=topk"], "evaluation.teacher=topk needs a teacher that scores given texts"),
    ],
)
def test_what_an_api_cannot_do_is_refused_before_anything_is_spent(
    words: list[str], environment: dict[str, str], tmp_path: Path, more: list[str], said: str
) -> None:
    done = cli.run(*_with_data([word for word in words if not word.startswith("--k=")], tmp_path), *more, **environment)
    assert done.returncode == 78
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
