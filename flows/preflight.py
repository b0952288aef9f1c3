"""What can be known to be wrong before anything is spent."""

from __future__ import annotations

import shutil

from prefect import task

from infra import settings, storage
from infra.errors import ConfigurationError, disk_full
from infra.models import ModelSource, resolve
from tasks.logits.alignment import check_same_tokens
from tasks.tokens import tokenizer_digests
from tasks.train.settings import Distillation


@task(name="check", persist_result=False)
def check(student: str, teacher: str, kd: Distillation) -> tuple[ModelSource, ModelSource]:
    """Resolve both models and refuse what would fail hours later; raises ConfigurationError."""
    if kd.tail == "bucket" and kd.temperature != 1.0:
        raise ConfigurationError(
            f"kd.tail=bucket needs kd.temperature=1, not {kd.temperature:g}: the teacher's tail is known at 1 only"
        )
    home = settings.home()
    home.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(home).free < settings.min_free_mib() * 2**20:
        raise disk_full(home)
    base, scorer = resolve(student, "student"), resolve(teacher, "teacher")
    check_same_tokens(tokenizer_digests(scorer), base)
    storage.ensure_bucket()
    return base, scorer
