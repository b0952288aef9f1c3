"""A run is refused here, before anything is spent, for all that is wrong with it at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial

from prefect import task

from flows.checks import check_benchmarks, check_routes, check_run, check_tools, tried
from flows.recipe import Recipe
from infra import devices, settings
from infra.errors import ConfigurationError, disk_full, in_one_sentence
from infra.orchestration.view import say
from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tasks.augment.own_prompts import prompts_of
from tasks.models import ModelSource, resolve
from tasks.seeds.stage import check_sources


@dataclass(frozen=True)
class Models:
    """What a run starts from; `others` are the teachers of some task categories, by name.

    A `teacher` behind an API is no model here (None).
    """

    student: ModelSource
    teacher: ModelSource | None
    others: dict[str, ModelSource]

    @property
    def teachers(self) -> list[ModelSource]:
        return [model for model in (self.teacher, *self.others.values()) if model]


@task(name="check", persist_result=False)
def check(recipe: Recipe, elsewhere: bool = False) -> Models:
    """Resolve all models and refuse what would fail hours later; raises ConfigurationError that names all of it.

    What engines can do `elsewhere`, on workers, is found out there.
    """
    problems: list[str] = []
    tried(problems, _check_disk)
    base = tried(problems, lambda: resolve(recipe.student, "student"))
    named = () if recipe.settings.scoring.engine == "api" else (recipe.teacher, *recipe.routes)
    teachers = {name: tried(problems, partial(resolve, name, "teacher")) for name in named}
    on_gpu = None if elsewhere else devices.gpus() > 0
    wrong, remarks = check_run(recipe, base, teachers, on_gpu=on_gpu, here=not elsewhere)
    problems += wrong
    for remark in remarks:
        say(f"[dim]{remark}[/dim]")
    tried(problems, lambda: check_benchmarks(recipe))
    if recipe.settings.augmentation.enabled:
        tried(problems, lambda: prompts_of(recipe.settings.augmentation.prompts))
    if tried(problems, _storage_answers):
        problems.extend(check_sources(recipe.sources))
    known = {name: scorer for name, scorer in teachers.items() if scorer}
    if base and not problems:
        return Models(base, known.pop(recipe.teacher, None), known)
    raise ConfigurationError(in_one_sentence(list(dict.fromkeys(problems))))


def _check_disk() -> None:
    home = settings.made_home()
    if shutil.disk_usage(home).free < settings.min_free_mib() * 2**20:
        raise disk_full(home)


def _storage_answers() -> bool:
    storage.ensure_bucket()
    if not storage.keeps_conditions():
        say(
            "[dim]the store keeps no conditions on writes: who works on what is found by waiting and looking, two "
            "seconds each time[/dim]"
        )
    return True


def check_seeds(seeds: ArtifactRef, recipe: Recipe, models: Models) -> None:
    """`check_tools` and `check_routes`, said; raises ConfigurationError for what stops the run."""
    problems, remarks = check_tools(seeds, models.student, *models.teachers)
    if problems := [*check_routes(seeds, recipe), *problems]:
        raise ConfigurationError(in_one_sentence(problems))
    for remark in remarks:
        say(remark)
