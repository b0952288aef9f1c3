"""The stage around the training program: its identity, its launch under DeepSpeed, its artifact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

from infra import devices
from infra.devices import Gpus
from infra.errors import TransientError
from infra.needs import Needs
from infra.processes.shared_memory import remove_buffers_of, remove_unused_buffers
from infra.processes.supervise import Event, run_supervised
from infra.stage import Made, OneArtifact, View, skipped_note
from infra.store import storage
from infra.store.artifacts import ArtifactRef, Workspace, facts_of
from tasks.engines.sizes import ModelShape, known_size
from tasks.models import ModelSource
from tasks.rows import Turns
from tasks.tokens.spans import turns_identity, unsupervised_note
from tasks.train.launch import local, nodes
from tasks.train.launch.nodes import PROGRAM, Launch
from tasks.train.memory import held_in_memory
from tasks.train.placement import Demand, choose
from tasks.train.settings import Distillation, Part, Training, TrainingRun

STAGE_VERSION = 4
_CPU_RANKS = 2
_POLL_S = 1.0
Name = Literal["sft", "kd", "sft_control", "sft_after_kd", "kd_continued", "kd_round"]
_ON_ROWS: tuple[Name, ...] = ("sft", "sft_control", "sft_after_kd")


class Train(OneArtifact):
    """A model trained from `model` with DeepSpeed: on rows (sft, …), or on the teacher's top K (kd, …).

    Of `run`, only a precision that is asked for changes the result. `turns` says which answers of a row are trained on;
    a store says it for itself. Of a store, `only` the rows of that artifact are trained on, where it is given, and of
    each token the `k` likeliest alternatives, where more are stored. Where several teachers scored the rows, `data` is
    the store of the first, and `routed` has those of the others. Stores that are trained on `also` have their shares of
    every batch, and `data` has what is left. `round` tells rounds of one run apart.
    """

    kind: ClassVar = "train"
    makes: ClassVar = get_args(Name)
    doing: ClassVar = "training"
    on_workers: ClassVar = True

    name: Name
    model: ModelSource
    data: ArtifactRef
    training: Training | Distillation
    run: TrainingRun
    seed: int
    turns: Turns = "last"
    only: ArtifactRef | None = None
    also: tuple[Part, ...] = ()
    k: int | None = None
    routed: tuple[ArtifactRef, ...] = ()
    round: int = 0

    @property
    def title(self) -> str:
        return f"round_{self.round}" if self.round else self.name

    @property
    def is_shared(self) -> bool:
        """Whether this machine is a node that another one leads: its artifact is made there, and only awaited here."""
        run = self.run
        return run.hostfile is not None and nodes.this_node(run, nodes.read_hosts(run.hostfile)) > 0

    def workspace(self) -> Workspace:
        spec = {"model": self.model.identity(), "training": self.training.identity(), "seed": self.seed}
        spec |= turns_identity(self.turns) | self.run.identity()
        inputs = {"data": self.data} | ({"only": self.only} if self.only else {})
        if self.also:
            spec["also"] = [part.share for part in self.also]
        if self.k:
            spec["k"] = self.k
        for number, part in enumerate(self.also, 1):
            inputs |= {f"also_{number}": part.scores} | _numbered(f"also_{number}_routed", part.routed)
        inputs |= _numbered("routed", self.routed)
        return Workspace(self.name, STAGE_VERSION, spec, inputs)

    def slots(self, missing: Mapping[str, Workspace]) -> Mapping[str, int]:
        return {devices.GPU: devices.gpu_slots(self.run.processes or devices.gpus())}

    def needs(self, offered: Gpus | None) -> Needs | None:
        """None too where nodes train together, which no work pool starts."""
        ranks = self.run.processes or (offered.number if offered else 0)
        if not ranks or self.run.hostfile:
            return None
        size = known_size(self.model)
        memory = offered.memory if offered else None
        return Needs.of_engine(ranks, self._held(size.shape, ranks, memory or 0) if size else 0)

    def _held(self, shape: ModelShape, ranks: int, memory: int) -> int:
        """Bytes of the machine's memory, where a device has so many; rows may all be as long as they may be."""
        longest, how = self.training.max_length, self.training
        demand = Demand(
            shape=shape,
            ranks=ranks,
            memory=memory,
            global_batch=how.global_batch,
            row_tokens=longest,
            longest=lambda rows: rows * longest,
            lora=how.lora,
            half=self.run.precision != "fp32",
        )
        return held_in_memory(shape, choose(self.run, demand), ranks, how.lora)

    def make_in(self, work: Workspace, view: View) -> ArtifactRef:
        follow = view.follow(describe)
        how = self.training, self.run, self.seed, follow, self.turns
        return train(work, self.name, self.model, self.data, *how, self.only, self.also, self.k, self.routed)

    def show(self, made: Made, view: View) -> str:
        counts, facts = made.shown.counts, facts_of(made.shown)
        left_out = skipped_note(facts["skipped"]) + unsupervised_note(facts)
        return f"{counts['steps']:,} steps on {counts['rows']:,} rows{left_out}"


def _numbered(name: str, refs: Sequence[ArtifactRef]) -> dict[str, ArtifactRef]:
    return {f"{name}_{number}": ref for number, ref in enumerate(refs, 1)}


def train(
    work: Workspace,
    stage: Name,
    model: ModelSource,
    data: ArtifactRef,
    training: Training,
    run: TrainingRun,
    seed: int,
    on_event: Any,
    turns: Turns = "last",
    only: ArtifactRef | None = None,
    also: Sequence[Part] = (),
    k: int | None = None,
    routed: Sequence[ArtifactRef] = (),
) -> ArtifactRef:
    """Train under the DeepSpeed launcher in supervised processes; resumes from the last checkpoint."""
    hosts = nodes.read_hosts(run.hostfile) if run.hostfile else None
    node = nodes.this_node(run, hosts) if hosts else 0
    spec = {
        "objective": "sft" if stage in _ON_ROWS else "kd",
        "model": model.model_dump(),
        "data": data.model_dump(),
        "only": only.model_dump() if only else None,
        "also": [part.model_dump() for part in also],
        "k": k,
        "routed": [ref.model_dump() for ref in routed],
        "training": training.model_dump(),
        "turns": turns,
        "run": run.model_dump(),
        "workspace": work.description(),
        "seed": seed,
    }
    if hosts and node:
        return _take_part(work, stage, hosts, node, run, spec, on_event)
    if hosts:
        launch = Launch.on(hosts)
        command = nodes.command(run, hosts, launch, 0, PROGRAM, work)
        nodes.announce(work, launch, spec | {"launch": launch.id})
    else:
        launch = Launch.here(run.processes or devices.gpus() or _CPU_RANKS)
        command = local.command(launch.ranks, launch.port, PROGRAM)
    try:
        result = _supervised(stage, command, launch, spec, run, on_event, f"{work.uri}log.txt")
    except TransientError as error:
        if hosts and (reported := nodes.reported_error(work, launch.id)):
            raise reported from error
        raise
    work.put_json("curve.json", result["facts"]["curve"])
    ref = work.publish(("model/", "curve.json"), result["counts"], result["facts"])
    if not run.keep_checkpoints:
        prefix = f"{work.uri}checkpoint/"
        storage.delete_all(prefix, list(storage.keys(prefix)))
    return ref


def _take_part(
    work: Workspace,
    stage: Name,
    hosts: nodes.Hosts,
    node: int,
    run: TrainingRun,
    spec: dict[str, Any],
    on_event: Any,
) -> ArtifactRef:
    """What a node that is not the first does where each is started by itself, until the artifact is there."""
    waits_until = time.monotonic() + run.stall_timeout_s
    while time.monotonic() < waits_until:
        if ref := work.find():
            return ref
        if launch := nodes.next_launch(work, node):
            command = nodes.command(run, hosts, launch, node, PROGRAM, work)
            _supervised(stage, command, launch, spec, run, on_event, f"{work.uri}log-{node}.txt")
            waits_until = time.monotonic() + run.stall_timeout_s
        time.sleep(_POLL_S)
    raise TransientError(f"{stage}: {hosts.names[0]}, the first host of {hosts.path}, does not start training")


def _supervised(
    stage: Name, command: list[str], launch: Launch, spec: dict[str, Any], run: TrainingRun, on_event: Any, log: str
) -> dict[str, Any]:
    remove_unused_buffers()  # of runs that were killed
    try:
        return run_supervised(
            stage,
            command,
            spec | {"launch": launch.id},
            on_event=on_event,
            env=nodes.environment(launch.on_node),
            stall_timeout_s=run.stall_timeout_s,
            timeout_h=run.timeout_h,
            log_uri=log,
        )
    finally:
        remove_buffers_of(launch.port)


def describe(event: Event) -> str:
    """A progress event as a short note."""
    return f"loss {event['loss']:.3f} · {event['tokens_s']:,.0f} tokens/s"
