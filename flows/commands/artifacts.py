"""The commands about rows and artifacts: `estimate`, `prompts`, `export`, `publish`, `gc`.

What a command needs is imported when it is called: `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from tasks.augment.settings import Augmentation, Format, RowTable
from tasks.seeds.settings import Reading


def estimate(
    *,
    seeds: str = "demo",
    agent_model: str = "demo",
    student: str = "demo",
    heldout: str | None = None,
    heldout_share: float = 0.1,
    data: Reading | None = None,
    augmentation: Augmentation | None = None,
    sample: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 100,
    ask: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    show: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Say how many requests and tokens the agents will take, and what they will cost, before anything is spent.

    Parameters
    ----------
    seeds
        As for `run`, like all flags that `run` has.
    sample
        Seeds to rehearse with; nothing is asked.
    ask
        Put this many seeds before the agents instead, and measure. Costs their answers, which a run then finds.
    show
        Show what each agent made of them, beside the seeds.
    """
    from flows.commands.data import print_estimate

    print_estimate(student, seeds, agent_model, heldout, heldout_share, data, augmentation, sample, ask, show)


def prompts(folder: Path) -> None:
    """Write the agents' prompts to a folder, to edit and then run with: --augmentation.prompts FOLDER.

    Parameters
    ----------
    folder
        A new folder. Files that you delete stay as they are shipped.
    """
    from flows.commands.data import write_prompts

    write_prompts(folder)


def export(to: Path, *, form: Format | None = None, table: RowTable = "kept", artifact: str | None = None) -> None:
    """Write the augmented rows of a run, or the teacher's scores, to a file that other trainers read.

    Parameters
    ----------
    to
        The file; its name's end decides between Parquet and JSONL (Alpaca) where no form is given.
    form
        alpaca, sharegpt, messages (JSONL), parquet with all columns, or dpo: pairs of a kept response (chosen) and the
        one that Rewriting corrected or Verification rejected (JSONL in TRL's conversational form).
    table
        kept, rejected or failed rows, or topk: the teacher's log-probabilities (Parquet).
    artifact
        s3:// address of the stage's artifact (augment, or logits for topk); that of the latest run without.
    """
    from flows.commands.data import export_rows

    export_rows(to, form, table, artifact)


def publish(to: str, *, variant: str = "kd", artifact: str | None = None, hub: str | None = None) -> None:
    """Write a run's student and its training rows, each with its card, where others can use them.

    Parameters
    ----------
    to
        A new folder, or an s3:// prefix: model/ and dataset/ go below it.
    variant
        Which student of the latest run: kd, sft, sft_control, round_1, or a quantised one such as kd_q4_k_m.
    artifact
        s3:// address of the student, in place of one of the latest run.
    hub
        owner/name: also push to the Hugging Face hub, and the rows as owner/name-data; needs HF_TOKEN. New repositories
        are private.
    """
    from flows.commands.publish import publish as publish_student

    publish_student(to, artifact, hub, variant)


def gc(
    *,
    delete: Annotated[bool, Parameter(negative=())] = False,
    keep_days: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 30,
    keep_last: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 10,
    keep: Annotated[list[str] | None, Parameter(negative=())] = None,
    grace_days: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 7,
    answers_days: Annotated[float | None, Parameter(validator=validators.Number(gte=0))] = None,
) -> None:
    """List what no kept report refers to, and delete it where that is asked.

    Kept are recent reports and leaderboards, with everything that they were made from; whatever a run made, used
    or touched within the grace time; what a running worker holds; and anything in the bucket that is not distilflow's.
    The rest goes: artifacts that only old reports refer to, or none; unfinished work; checkpoints and batches of
    finished stages; results of dispatched stages; local copies of artifacts that are gone.
    Runs may go on meanwhile. A later run makes anew what it misses.

    Parameters
    ----------
    delete
        Really delete; without it, only list.
    keep_days
        Reports that a run made or found again within so many days are kept.
    keep_last
        So many of the newest reports are kept, however old they are.
    keep
        s3:// address of an artifact to keep, with all it was made from; may be given several times.
    grace_days
        Whatever a run made, used or touched within so many days is kept: more than your longest run takes.
    answers_days
        Also delete shared LLM answers older than this. They were paid for: without it they are kept for ever.
    """
    from flows.commands.gc import policy_of, print_garbage

    print_garbage(policy_of(keep_days, keep_last, keep, grace_days, answers_days), delete)
