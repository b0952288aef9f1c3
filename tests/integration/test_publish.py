"""What is published is usable: transformers loads the student, `datasets` the rows; the hub is a mock, S3 is real."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

from flows.commands.publish import publish, serve_command
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.report.comparison import verdict
from tasks.rows import KEPT, Row, to_parquet
from tasks.shipped import DEMO
from tasks.train.settings import Distillation
from tests.support.report_sample import sample_report


@pytest.fixture(scope="module")
def student(rows: ArtifactRef) -> ArtifactRef:
    """The demo's base model in the place of a distilled one, with scores and rows behind it as a run leaves them."""
    scores = Workspace("logits", 1, {"for": "publish"}, {"rows": rows})
    work = Workspace("kd", 1, {"for": "publish"}, {"data": scores.find() or scores.publish((), {}, {})})
    work.put_folder("model/", DEMO / "student")
    work.put("model/README.md", b"# A student\n")
    return work.find() or work.publish(("model/",), {}, {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a mocked hub was asked."""
    asked: list[tuple[Any, ...]] = []

    class Api:
        def create_repo(self, repo: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
            asked.append(("create", repo, repo_type, private, exist_ok))

        def upload_folder(self, *, repo_id: str, repo_type: str, folder_path: Path, commit_message: str) -> None:
            asked.append(("upload", repo_id, repo_type, sorted(p.name for p in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    return asked


def test_a_published_folder_loads_in_transformers_and_its_rows_in_datasets(
    student: ArtifactRef, rows: ArtifactRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = tmp_path / "the company's student"
    publish(str(to), student.uri, None)

    model: Any = AutoModelForCausalLM.from_pretrained(to / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(to / "model")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_tensors="pt", return_dict=True)
    assert model(**ids).logits.shape[-1] == model.config.vocab_size
    data = datasets.load_dataset(str(to / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == rows.counts["rows"]
    assert set(data.column_names) >= {"id", "instruction", "input", "response", "task_category"}
    assert (to / "model" / "README.md").read_text() == "# A student\n"
    assert "200 rows with the responses that they came with" in (to / "dataset" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", to.name]  # and nothing half-made

    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if line.startswith("serve")).removeprefix("serve").strip()
    assert shlex.split(command)[-1] == str(to / "model")


@pytest.fixture
def storage_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where none is kept running: it is there for as long as the command asks for it, and no longer."""

    @contextlib.contextmanager
    def embedded() -> Iterator[None]:
        yield
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")

    monkeypatch.setattr("flows.commands.publish.embedded_storage", embedded)


@pytest.mark.usefixtures("storage_of_its_own")
def test_a_student_of_a_run_is_published_with_the_runs_card_and_the_console_says_which_run_that_is(
    rows: ArtifactRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = {"training": Distillation().model_dump(), "seed": 1}
    facts = {"parameters": 1_000_000}
    counts = {"steps": 3, "rows": 200, "supervised_tokens": 9_000}
    scores = Workspace("logits", 1, {"for": "card", "teacher": "hub:Qwen/Qwen2.5-72B-Instruct@1"}, {"rows": rows})
    topk = scores.publish((), {}, {})
    sft = Workspace("sft", 1, {"model": "hub:Qwen/Qwen2.5-0.5B-Instruct@1", **training}, {"data": rows})
    tuned = sft.publish((), counts, facts)
    work = Workspace("kd", 1, {"model": "artifact:1", **training}, {"data": topk})
    work.put_folder("model/", DEMO / "student")
    work.put("model/README.md", b"# A student\n")
    kd = work.publish(("model/",), counts, facts)
    data = sample_report(title="0.5B distilled from 72B", student="0.5B", teacher="72B")
    for number in range(2):  # the second is of another student
        of = {"sft": tuned, "logits": topk, "kd": tuned if number else kd}
        report = Workspace("report", 1, {"about": number}, of)
        report.put("data.json", data.model_dump_json().encode())
        report.publish(("data.json",), {}, {})

    publish(str(tmp_path / "student"), kd.uri, None)
    card = (tmp_path / "student" / "model" / "README.md").read_text()
    assert "# 0.5B distilled from 72B" in card
    assert 'base_model: "Qwen/Qwen2.5-0.5B-Instruct"' in card
    said = capsys.readouterr().out
    assert "run      0.5B distilled from 72B, of 20" in said
    assert f"student  SFT+KD: {kd.uri}" in said
    assert f"verdict  {verdict(data)}" in said


def test_the_card_of_augmented_rows_goes_with_them(tmp_path: Path) -> None:
    augmented = Workspace("augment", 1, {"for": "publish"}, {})
    augmented.put(f"{KEPT}00000.parquet", to_parquet([Row(instruction="Count", response="SELECT 1;")]))
    augmented.put("card.md", b"# Augmented dataset\n")
    work = Workspace("sft", 1, {"for": "publish"}, {"data": augmented.publish((KEPT, "card.md"), {"rows": 1}, {})})
    work.put_folder("model/", DEMO / "student")
    publish(str(tmp_path / "student"), work.publish(("model/",), {}, {}).uri, None)
    text = (tmp_path / "student" / "dataset" / "README.md").read_text()
    assert text.startswith("---\nconfigs:\n")
    assert text.endswith("---\n\n# Augmented dataset\n")


def test_what_lies_at_the_place_is_never_mixed_with_the_student(student: ArtifactRef, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        publish(str(tmp_path), student.uri, None)
    prefix = f"s3://{storage.split_uri(student.uri)[0]}/taken"
    storage.put(f"{prefix}/notes.txt", b"mine")
    with pytest.raises(ConfigurationError, match=r"holds something else already \(notes.txt\)"):
        publish(prefix, student.uri, None)
    assert list(storage.keys(f"{prefix}/")) == ["notes.txt"]


def test_a_prefix_in_s3_gets_the_same_files_and_a_stopped_upload_is_completed(
    student: ArtifactRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = f"s3://{storage.split_uri(student.uri)[0]}/published"
    storage.put(f"{prefix}/model/config.json", b"cut off")
    publish(prefix + "/", student.uri, None)
    publish(str(tmp_path / "local"), student.uri, None)
    local = {p.relative_to(tmp_path / "local").as_posix(): p for p in (tmp_path / "local").rglob("*") if p.is_file()}
    assert set(storage.keys(f"{prefix}/")) == local.keys()
    assert all(storage.get(f"{prefix}/{name}") == path.read_bytes() for name, path in local.items())
    assert f"aws s3 cp --recursive {prefix}/model ./student && " in capsys.readouterr().out


def test_the_hub_gets_both_in_private_repositories(
    student: ArtifactRef, tmp_path: Path, hub: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    publish(str(tmp_path / "student"), student.uri, "my-company/small")
    assert [call[:3] for call in hub] == [
        ("create", "my-company/small", "model"),
        ("upload", "my-company/small", "model"),
        ("create", "my-company/small-data", "dataset"),
        ("upload", "my-company/small-data", "dataset"),
    ]
    assert {call[3:] for call in hub if call[0] == "create"} == {(True, True)}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub[1][3])
    assert hub[3][3] == ["README.md", "train.parquet"]
    assert "hf_test" not in capsys.readouterr().out


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "said"),
    [("small", "name the owner too, such as my-company/small"), ("a/b/c", "--hub a/b/c"), ("a b/c", "--hub a b/c")],
)
def test_a_bad_name_is_refused_before_anything_is_copied(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        publish(str(tmp_path / "student"), "s3://b/x/", name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_a_token_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigurationError, match="no token for the hub: set HF_TOKEN to one that may write to a/b"):
        publish(str(tmp_path / "student"), "s3://b/x/", "a/b")


def test_a_hub_that_refuses_or_is_not_there_is_one_sentence_and_leaves_nothing(
    student: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    monkeypatch.setenv("HF_TOKEN", "hf_test")
    refusal = httpx.Response(403, request=httpx.Request("POST", "https://hub/api"))
    for raised, said in (
        (HfHubHTTPError("no", response=refusal), r"the hub does not take a/b \(403\)"),
        (httpx.ConnectError("down"), r"the hub cannot be reached \(ConnectError\)"),
    ):

        def fail(*_: Any, raised: Exception = raised, **__: Any) -> None:
            raise raised

        monkeypatch.setattr("huggingface_hub.HfApi", lambda fail=fail: SimpleNamespace(create_repo=fail))
        with pytest.raises(Exception, match=said):
            publish(str(tmp_path / "student"), student.uri, "a/b")
    assert list(tmp_path.iterdir()) == []


def test_only_students_are_published(rows: ArtifactRef, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is of the augment stage: name an artifact of the kd stage"):
        publish(str(tmp_path / "x"), rows.uri, None)


def test_paths_in_the_command_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"vllm": ["vllm"]})
    assert serve_command("/models/a b", None) == "vllm serve '/models/a b/model'"
    assert serve_command("s3://b/x y", "me/small") == "vllm serve me/small"
    assert serve_command("s3://b/x y", None).startswith("aws s3 cp --recursive 's3://b/x y/model'")


def test_the_command_names_a_server_that_this_environment_has() -> None:
    words = shlex.split(serve_command("/models/x", None))
    if words[:2] == ["vllm", "serve"]:
        assert metadata.version("vllm")
    else:
        assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert importlib.util.find_spec(words[2]) is not None
