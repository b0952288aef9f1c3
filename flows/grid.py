"""The combinations of a sweep: every one checked before the first is started."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.exceptions import ParameterBindError, ParameterTypeError

from flows.distill import distill
from flows.recipe import Recipe
from infra.errors import ConfigurationError, in_one_sentence
from tasks.shipped import MODELS

_GRID = ("student", "teacher", "k")
DEPLOYMENTS = {
    **dict.fromkeys(MODELS["student"], "distill/demo"),
    **{size: f"distill/qwen2.5-{size.lower()}" for size in ("0.5B", "1.5B", "3B", "7B")},
}


@dataclass(frozen=True)
class GridPoint:
    """One combination: the parameters of its `distill` run. `apart_from_seed` is its name without the seed."""

    name: str
    parameters: dict[str, Any]
    apart_from_seed: str = ""


def grid(
    students: Sequence[str],
    teachers: Sequence[str],
    ks: Sequence[int],
    rows: Sequence[int] | None,
    others: Mapping[str, Sequence[Any]],
    shared: Mapping[str, Any],
) -> list[GridPoint]:
    """Every combination, in the order of the lists; raises ConfigurationError where one is not a run of `distill`.

    Keys of `others` and `shared` may name a nested setting with dots: `kd.temperature`. Of several `ks` the teacher
    scores the largest, and students of the smaller ones learn from part of what is stored.
    """
    if len(set(ks)) > 1 and "scoring.k" not in others:
        shared = {"scoring.k": max(ks), **shared}
    axes = {"student": students, "teacher": teachers, "k": ks, **others}
    if rows:
        axes["augmentation.max_rows"] = rows
    if twice := [key for key in shared if key in axes]:
        raise ConfigurationError(f"{', '.join(twice)}: both among the sweep's lists and in `shared`; leave one out")
    if empty := [key for key, values in axes.items() if not values]:
        raise ConfigurationError(f"{', '.join(empty)}: the list is empty")
    points: dict[str, GridPoint] = {}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        alike = _name({key: value for key, value in chosen.items() if key != "seed"})
        point = GridPoint(_name(chosen), nested({**shared, **chosen}), alike)
        points[point.name] = point
    return checked_points(points.values())


def checked_points(points: Iterable[GridPoint]) -> list[GridPoint]:
    """The same; raises ConfigurationError that names every one that `distill` would not take, by reason."""
    checked, refused = list(points), dict[str, list[str]]()
    for point in checked:
        if reason := _refused(point):
            refused.setdefault(reason, []).append(point.name)
    if refused:
        raise ConfigurationError(in_one_sentence([f"{_some(names)}: {reason}" for reason, names in refused.items()]))
    return checked


def deployment_of(point: GridPoint) -> str:
    """The deployment that distils the combination's student."""
    student = point.parameters["student"]
    if student not in DEPLOYMENTS:
        known = ", ".join(DEPLOYMENTS)
        raise ConfigurationError(f"there is no deployment for the student {student!r}: use {known}, or this process")
    return DEPLOYMENTS[student]


def _name(chosen: Mapping[str, Any]) -> str:
    """`0.5B-from-14B-k10`, then what else is varied."""
    name = f"{chosen['student']}-from-{chosen['teacher']}-k{chosen['k']}"
    for key, value in chosen.items():
        if key == "augmentation.max_rows":
            name += f"-{value}-rows"
        elif key not in _GRID:
            name += f"-{key}={value if isinstance(value, str | int | float) else json.dumps(value)}"
    return name


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `distill` from those that name a nested setting with dots; later ones are laid over earlier."""
    parameters: dict[str, Any] = {}
    for key, value in flat.items():
        *folders, last = key.split(".")
        place = parameters
        for folder in folders:
            inner = dict(place.get(folder) or {})
            place[folder] = inner
            place = inner
        place[last] = (
            {**place[last], **value} if isinstance(place.get(last), dict) and isinstance(value, dict) else value
        )
    return parameters


def _refused(point: GridPoint) -> str | None:
    """Why `distill` would not take it, if it would not."""
    try:
        Recipe.of(distill.validate_parameters(point.parameters))
    except (ConfigurationError, ParameterTypeError, ParameterBindError, TypeError) as error:
        return " ".join(str(error).split())
    return None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
