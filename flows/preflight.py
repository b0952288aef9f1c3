"""What can be known to be wrong before anything is spent."""

from __future__ import annotations

import shutil

from prefect import task

from infra import settings, storage
from infra.errors import ConfigurationError, disk_full
from infra.models import ModelSource, resolve
from infra.ui import say
from tasks.logits.alignment import check_same_template
from tasks.tokens import tokenizer_digests
from tasks.train.settings import Distillation


def check_settings(kd: Distillation) -> None:
    """Refuse settings that contradict each other; raises ConfigurationError."""
    if kd.tail == "bucket" and kd.temperature != 1.0:
        raise ConfigurationError(
            f"kd.tail=bucket needs kd.temperature=1, not {kd.temperature:g}: the teacher's tail is known at 1 only"
        )


@task(name="check", persist_result=False)
def check(student: str, teacher: str, kd: Distillation) -> tuple[ModelSource, ModelSource]:
    """Resolve both models and refuse what would fail hours later; raises ConfigurationError."""
    check_settings(kd)
    home = settings.home()
    home.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(home).free < settings.min_free_mib() * 2**20:
        raise disk_full(home)
    base, scorer = resolve(student, "student"), resolve(teacher, "teacher")
    digests = tokenizer_digests(scorer)
    if digests["vocabulary"] == tokenizer_digests(base)["vocabulary"]:
        check_same_template(digests, base)
    else:
        say(
            f"[dim]{student} and {teacher} have different tokenizers: the teacher's distributions go where both cut "
            f"the text alike, and training refuses less than kd.min_alignment = {kd.min_alignment:g}[/dim]"
        )
    storage.ensure_bucket()
    return base, scorer
