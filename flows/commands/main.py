"""The command line: `distilflow run`, `estimate`, `export`, `publish`, `gc`, `up`, `down`, `status`, `worker` …

Environment that Prefect reads when it is imported is set here first, which is why the flow is imported late.
"""

from __future__ import annotations

import errno
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError

from infra import settings
from infra.errors import DistilflowError, disk_full, is_disk_full, unusable_home
from infra.printable import printable
from infra.processes import interruption
from infra.processes.program import lean_imports
from infra.services import background, embedded
from tasks.augment.settings import Augmentation, Format, RowTable
from tasks.seeds.settings import Reading

_NOT_OURS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
)  # what a folder of others answers

app = App(
    name="distilflow",
    help="Distil a large teacher into a small student, on your own data.",
    version=lambda: metadata.version("distilflow"),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)


def main() -> None:
    """Entry point: one clear sentence and an exit code where something is wrong, never a traceback for a user error."""
    try:
        _quiet_libraries()
        if sys.argv[1:2] in (["run"], ["sweep"], ["experiment"]):
            register_flow(sys.argv[1])
        app(exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail("; ".join(_sentences(error)), 2)
    except DistilflowError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(interruption.STOPPED, interruption.EXIT_CODE)
    except OSError as error:
        if is_disk_full(error):
            _fail(str(disk_full(error.filename or settings.home())), 78)
        if error.errno not in _NOT_OURS or not str(error.filename).startswith(str(settings.home())):
            raise
        _fail(str(unusable_home(Path(error.filename), error)), 78)


@app.command
def up(port: int | None = None) -> None:
    """Start SeaweedFS and the Prefect server with its UI, and keep them running.

    Parameters
    ----------
    port
        Port of the Prefect UI (default: 4200, or a free one).
    """
    background.up(port)


@app.command
def down(*, now: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Stop what `up` started; all data stay under .distilflow/. Refused while runs are under way or workers run.

    Parameters
    ----------
    now
        Stop all the same: runs under way fail, and continue from what is finished when they are started again.
    """
    background.down(now=now)


@app.command
def status() -> None:
    """Say whether the services of `up` run, and where."""
    background.status()


@app.command
def bootstrap(
    *,
    gpus: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    llm: dict[str, int] | None = None,
    kubernetes: bool = False,
    redeploy: bool = False,
) -> None:
    """Create work pools, limits, failure notifications and deployments on the Prefect server; repeatable.

    Parameters
    ----------
    gpus
        GPUs of all workers together: how many stages may hold at a time (default: this machine's, or 1).
    llm
        Requests in flight to an LLM provider, over all runs: --llm.openai 512.
    kubernetes
        Create the work pools kubernetes-cpu and kubernetes-gpu too.
    redeploy
        Bring the deployments that exist back to prefect.yaml, after an update of distilflow.
    """
    with embedded.lasting_services("prefect"):
        from infra.orchestration.bootstrap import bootstrap

        bootstrap(gpus, llm or {}, kubernetes, redeploy)


@app.command
def worker(
    pool: Literal["cpu", "gpu"], *, limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None
) -> None:
    """Take runs of a work pool on this machine, until Ctrl-C; what is under way then goes back to the queue.

    Parameters
    ----------
    pool
        cpu or gpu.
    limit
        Runs at a time on this machine (default: the pool's limit).
    """
    with embedded.lasting_services():
        from infra.orchestration.worker import run_worker

        run_worker(pool, limit)


@app.command
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


@app.command
def prompts(folder: Path) -> None:
    """Write the agents' prompts to a folder, to edit and then run with: --augmentation.prompts FOLDER.

    Parameters
    ----------
    folder
        A new folder. Files that you delete stay as they are shipped.
    """
    from flows.commands.data import write_prompts

    write_prompts(folder)


@app.command
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


@app.command
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


@app.command
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


@app.command
def metrics(
    *, port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 9464, host: str = "127.0.0.1"
) -> None:
    """Answer Prometheus until Ctrl-C: tokens a second, rows, dollars, device seconds, stages by outcome.

    Parameters
    ----------
    port
        Where it listens.
    host
        The address that it listens on; there is no password, and the answers name your models.
    """
    with embedded.lasting_services():
        from flows.commands.metrics import serve

        serve(port, host)


@app.command(name="run")
def _run_placeholder() -> None:
    """Distil a student: seeds → augment → sft → logits → kd → evaluate → report."""


@app.command(name="sweep")
def _sweep_placeholder() -> None:
    """Distil every combination of students, teachers, K, …, and rank them by quality and cost."""


@app.command(name="experiment")
def _experiment_placeholder() -> None:
    """Answer one question of the method on your data: which K, which teacher, how many rows, …"""


def register_flow(command: str) -> None:
    """Give `run`, `sweep` or `experiment` the parameters of the flow itself, so that there is one list of them."""
    with lean_imports():
        from flows.commands.run import FLOWS, flow_command

        if command in FLOWS:
            del app[command]
            app.command(flow_command(command), name=command)


def _quiet_libraries() -> None:
    """A run shows our lines, not those of the libraries below; theirs go to the Prefect UI and the logs."""
    os.environ.setdefault("DISTILFLOW_CONSOLE", "1")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not os.environ.get("PREFECT_API_URL"):
        folder = settings.made_home() / "prefect"  # the user's own Prefect stays untouched
        folder.mkdir(exist_ok=True)
        os.environ["PREFECT_HOME"] = str(folder)


def _sentences(error: CycloptsError) -> list[str]:
    """What is wrong with the flags: cyclopts ends at the first that is, so the others are read without it."""
    words, found = sys.argv[1:], [_sentence(error)]
    while argument := getattr(error, "argument", None):
        others = _without(argument.name, words)
        if others == words:
            break
        try:
            app.parse_args(words := others, exit_on_error=False, print_error=False)
            break
        except CycloptsError as next_error:
            error = next_error
            found.append(_sentence(error))
    return found


def _without(flag: str, words: list[str]) -> list[str]:
    """The command line without a flag, its values, and the nested flags below it."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word.split("=")[0] == flag or word.startswith(f"{flag}.")
        if not dropping:
            kept.append(word)
    return kept


def _sentence(error: CycloptsError) -> str:
    """What is wrong with a flag, and with the nested flags below it, on one line."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return " ".join(str(error).split())
    argument = getattr(error, "argument", None)
    problems = []
    for wrong in cause.errors(include_url=False):
        if wrong["type"] == "value_error":  # a rule between settings, which names them
            problems.append(str(wrong["ctx"]["error"]))
            continue
        flag = ".".join([argument.name if argument else "flags", *map(str, wrong["loc"])])
        given = "" if flag.endswith(".api_base") else f", not {wrong['input']!r}"  # it may hold a key
        problems.append(f"{flag}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}{given}")
    return "; ".join(problems)


def _fail(message: str, code: int) -> NoReturn:
    print(f"distilflow: {printable(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
