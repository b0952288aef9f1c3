"""The DeepSpeed training program, for real: ranks and accumulation change nothing, a killed run continues its curve."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from infra.errors import ConfigurationError, TransientError
from infra.processes.supervise import Event
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.logits import stage as logits_stage
from tasks.logits.settings import Scoring
from tasks.models import ModelSource, resolve
from tasks.train import stage
from tasks.train.settings import Distillation, Lora, Training, TrainingRun
from tests.support.door import Door
from tests.support.stages import scoring_workspace, training_workspace
from tests.support.training_process import TrainingProcess
from tests.support.wait import wait_for

SHORT: dict[str, Any] = {"learning_rate": 2e-3, "max_steps": 30, "global_batch": 16, "max_length": 256}
TRAINING = Training(**SHORT)
KD = Distillation(**SHORT, temperature=2.0)
RUN = TrainingRun(processes=2, micro_batch=8, zero_stage=2, checkpoint_every_s=1e-3)
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def topk(rows: ArtifactRef) -> ArtifactRef:
    """The teacher's top 10 on them, by the reference engine."""
    scoring = Scoring(engine="transformers", max_length=256)
    work = scoring_workspace(rows, TEACHER(), 10, scoring)
    return work.find() or logits_stage.score(work, rows, TEACHER(), 10, scoring, lambda event: None)


def TEACHER() -> ModelSource:
    return resolve("demo", "teacher")


def _train(
    data: ArtifactRef, training: Training, run: TrainingRun, tag: int, on_event: Any = lambda event: None
) -> ArtifactRef:
    """Train the demo student; `tag` makes the runs of a test different artifacts."""
    name: stage.Name = "kd" if isinstance(training, Distillation) else "sft"
    work = _work(data, training, tag)
    return stage.train(work, name, resolve("demo", "student"), data, training, run, 0, on_event)


def _work(data: ArtifactRef, training: Training, tag: int) -> Workspace:
    name: stage.Name = "kd" if isinstance(training, Distillation) else "sft"
    work = training_workspace(name, resolve("demo", "student"), data, training, seed=0)
    return Workspace(work.kind, 1000 + tag, work.spec, work.inputs)


def _curve(ref: ArtifactRef) -> list[list[float]]:
    curve: list[list[float]] = ArtifactReader(ref).read_json("curve.json")
    return curve


def _weights(ref: ArtifactRef) -> dict[str, torch.Tensor]:
    return load_file(ArtifactReader(ref).folder("model/") / "model.safetensors")


def _difference(first: ArtifactRef, second: ArtifactRef) -> float:
    """Largest difference of two runs' loss curves in nats; their weights have to be close too."""
    assert [step for step, _loss in _curve(first)] == [step for step, _loss in _curve(second)] == [10, 20, 30]
    largest = max(abs(a - b) for (_, a), (_, b) in zip(_curve(first), _curve(second), strict=True))
    ours, theirs = _weights(first), _weights(second)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=max(50 * largest, 5e-4), rtol=0.02, msg=name)
    return largest


@pytest.fixture(scope="module")
def uninterrupted(rows: ArtifactRef) -> ArtifactRef:
    return _train(rows, TRAINING, RUN, tag=0)


@pytest.fixture(scope="module")
def distilled(topk: ArtifactRef) -> ArtifactRef:
    return _train(topk, KD, RUN, tag=2)


def test_of_a_finished_training_the_model_stays_and_no_checkpoint(uninterrupted: ArtifactRef) -> None:
    assert facts_of(uninterrupted)["checkpoints"] > 0
    assert list(storage.keys(f"{uninterrupted.uri}checkpoint/")) == []
    assert list(storage.keys(f"{uninterrupted.uri}model/"))


def test_training_lowers_the_loss_and_exports_a_model_that_loads(uninterrupted: ArtifactRef) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    curve = _curve(uninterrupted)
    assert curve[-1][1] < 0.5 * curve[0][1]
    folder = ArtifactReader(uninterrupted).folder("model/")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("list all books", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
    assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize(("victim", "at_step"), [("rank", 10), ("launcher", 20), ("flow", 20)])
def test_a_kill_leaves_no_process(rows: ArtifactRef, victim: str, at_step: int) -> None:
    """SIGKILL of a rank, of DeepSpeed's launcher, and of the process that the flow runs in: one training throughout."""
    flow = TrainingProcess(rows, TRAINING, RUN, 1021, env={})
    wait_for(lambda: any(one.get("done", one.get("step", 0)) >= at_step for one in flow.events), 180, [flow.process])
    ranks = [p for p in psutil.process_iter(["cmdline"]) if _is_rank(p)]
    assert len(ranks) == 2
    os.kill({"rank": ranks[-1].pid, "launcher": ranks[0].ppid(), "flow": flow.process.pid}[victim], signal.SIGKILL)
    assert flow.ends() == (-signal.SIGKILL if victim == "flow" else TransientError.exit_code), flow.events[-1:]
    if victim == "flow":
        wait_for(lambda: not any(psutil.pid_exists(rank.pid) for rank in ranks), 15)
    assert not [p for p in psutil.process_iter(["cmdline"]) if _is_rank(p)]


def test_a_training_that_was_killed_three_times_has_the_same_curve(
    rows: ArtifactRef, uninterrupted: ArtifactRef
) -> None:
    """By the test before."""
    events: list[Event] = []
    resumed = _train(rows, TRAINING, RUN, 21, on_event=events.append)
    assert next(event["step"] for event in events if event["event"] == "resumed") in (10, 20)
    assert _difference(resumed, uninterrupted) <= 1e-5


def _kill_at_step_20(event: Event) -> None:
    if event["event"] == "progress" and event["done"] == 20:
        for rank in (p for p in psutil.process_iter(["cmdline"]) if _is_rank(p)):
            os.kill(rank.pid, signal.SIGKILL)


class _Poison:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_a_run_killed_on_two_ranks_runs_nothing_of_a_poisoned_bucket_and_goes_on_with_one(
    rows: ArtifactRef, uninterrupted: ArtifactRef, tmp_path: Path
) -> None:
    """Whoever wrote to the bucket gave the checkpoints the digests that they ought to have."""
    alone = RUN.model_copy(update={"processes": 1})
    with pytest.raises(TransientError, match="sft"):
        _train(rows, TRAINING, RUN, tag=4, on_event=_kill_at_step_20)
    folder = f"{_work(rows, TRAINING, 4).uri}checkpoint/"
    whole = json.loads(storage.get(folder + "latest.json") or b"")["whole"]
    assert whole
    kept = {uri: storage.get(uri) or b"" for name in storage.keys(folder) if (uri := folder + name)}
    mark, poison = tmp_path / "it ran", tmp_path / "poison.pt"
    torch.save({"module": _Poison(mark)}, poison)
    for place in whole:
        state = json.loads(kept[f"{folder}{place}/state.json"])
        for name in filter(lambda name: name.endswith("_states.pt"), state["files"]):
            state["files"][name] = storage.file_digest(poison)
            storage.upload(poison, f"{folder}{place}/{name}")
        storage.put(f"{folder}{place}/state.json", json.dumps(state).encode())

    with pytest.raises(TransientError, match="UnpicklingError"):
        _train(rows, TRAINING, alone, tag=4)
    assert not mark.exists()
    torch.load(poison, weights_only=False)  # as it would be loaded elsewhere
    assert mark.exists()

    for uri, data in kept.items():
        storage.put(uri, data)
    events: list[Event] = []
    resumed = _train(rows, TRAINING, alone, tag=4, on_event=events.append)
    assert next(event["step"] for event in events if event["event"] == "resumed") in (10, 20)
    assert _difference(resumed, uninterrupted) <= 1e-3


def test_adapters_train_and_are_merged(rows: ArtifactRef, uninterrupted: ArtifactRef, tmp_path: Path) -> None:
    """Under ZeRO-3 on two ranks as under ZeRO-1 on one; all but the projections stays what it was."""
    from safetensors.torch import load_file as load

    training = TRAINING.model_copy(update={"lora": Lora(rank=8, alpha=32)})
    ways = ({"zero_stage": 1, "processes": 1}, {"zero_stage": 3})
    runs = [RUN.model_copy(update={**way, "tensorboard": str(tmp_path)}) for way in ways]
    refs = [_train(rows, training, run, tag=10 + number) for number, run in enumerate(runs)]
    assert _difference(*refs) <= 1e-3
    assert _curve(refs[0])[-1][1] < 0.8 * _curve(refs[0])[0][1]
    before, after = load(Path(resolve("demo", "student").fetch()) / "model.safetensors"), _weights(refs[0])
    assert before.keys() == after.keys() == _weights(uninterrupted).keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].float())}
    assert moved == {name for name in before if name.endswith("_proj.weight")}

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder, _) = sorted(tmp_path.iterdir())
    written = EventAccumulator(str(folder))
    written.Reload()
    assert [(e.step, round(e.value, 3)) for e in written.Scalars("train/loss")] == [
        (step, round(loss, 3)) for step, loss in _curve(refs[0])
    ]
    assert all(e.value > 0 for e in written.Scalars("train/gradient_norm"))


@pytest.mark.parametrize("name", ["sft", "kd"])
def test_golden_curves(name: str, uninterrupted: ArtifactRef, distilled: ArtifactRef) -> None:
    """Losses of the first 30 steps as they were when last looked at; another kernel moves the fourth digit.

    DISTILFLOW_WRITE_GOLDEN=1 writes what this run finds.
    """
    curve, path = _curve({"sft": uninterrupted, "kd": distilled}[name]), GOLDEN / f"{name}_curve.json"
    if os.environ.get("DISTILFLOW_WRITE_GOLDEN"):
        path.write_text(json.dumps(curve) + "\n")
    assert curve == [[step, pytest.approx(loss, rel=2e-3)] for step, loss in json.loads(path.read_text())]


def _is_rank(process: psutil.Process) -> bool:
    """A training rank of this session; its launchers, too, have the module and the folder in their command line."""
    words, rank = process.info["cmdline"] or [], ["-m", "infra.processes.program", "tasks.train.program"]
    return words[2:5] == rank and words[-1].startswith(os.environ["DISTILFLOW_HOME"])


def test_one_rank_with_accumulation_and_activations_computed_twice_equals_two_without(
    rows: ArtifactRef, uninterrupted: ArtifactRef
) -> None:
    saving = TrainingRun(processes=1, micro_batch=5, zero_stage=0, gradient_checkpointing=True)
    events: list[Event] = []
    assert _difference(_train(rows, TRAINING, saving, tag=2, on_event=events.append), uninterrupted) <= 1e-3
    (chosen,) = [event["text"] for event in events if event["event"] == "note"]  # the offload, which nobody said
    assert chosen.startswith("ZeRO-0, 5 rows at once, activations computed twice: chosen for 1 ranks of ")


@pytest.mark.parametrize(("zero_stage", "offload"), [(0, "optimizer"), (2, "parameters")])
def test_an_offload_that_the_stage_has_not_is_refused(rows: ArtifactRef, zero_stage: int, offload: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"run.offload={offload} needs run.zero_stage=\d or more, not"):
        _train(rows, TRAINING, RUN.model_copy(update={"zero_stage": zero_stage, "offload": offload}), tag=7)


def test_storage_that_is_away_in_the_middle_does_not_end_the_run(rows: ArtifactRef, uninterrupted: ArtifactRef) -> None:
    """Until a checkpoint is given up: the run goes on, and its artifact is that of a quiet one."""
    with Door(os.environ["AWS_ENDPOINT_URL_S3"]) as door:
        env = {"AWS_ENDPOINT_URL_S3": door.url}
        flow = TrainingProcess(rows, TRAINING, RUN, 1030, env)
        wait_for(lambda: any(event["event"] == "progress" for event in flow.events), 180, [flow.process])
        door.shut()
        wait_for(lambda: any(event["event"] == "checkpoint_lost" for event in flow.events), 180, [flow.process])
        door.open()
        assert flow.ends() == 0, flow.events[-1:]
    made = training_workspace("sft", resolve("demo", "student"), rows, TRAINING, seed=0)
    finished = Workspace(made.kind, 1030, made.spec, made.inputs).find()
    assert finished is not None
    assert _difference(finished, uninterrupted) <= 1e-5


def test_distillation_under_zero_3_with_its_state_in_the_machines_memory_equals_zero_2(
    topk: ArtifactRef, distilled: ArtifactRef
) -> None:
    split = _train(topk, KD, RUN.model_copy(update={"zero_stage": 3, "offload": "parameters"}), tag=3)
    assert _difference(split, distilled) <= 1e-3


def test_no_usable_row_is_a_configuration_error(rows: ArtifactRef) -> None:
    with pytest.raises(ConfigurationError, match="no row is usable.*longer than 16 tokens"):
        _train(rows, TRAINING.model_copy(update={"max_length": 16}), RUN.model_copy(update={"processes": 1}), tag=3)


def test_logs_are_kept_where_people_find_them(uninterrupted: ArtifactRef, home: Path) -> None:
    assert (home / "logs" / "sft.log").stat().st_size > 0
