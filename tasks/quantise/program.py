"""The quantising program: a trained student in one format, tried before it is kept.

python -m tasks.quantise.program FOLDER

`model/` is what is evaluated: the compressed weights themselves for INT8 and FP8; of a GGUF file, which lies in
`gguf/`, the weights that it holds, in the student's own dtype. llama.cpp has to compute the same from the file. A file
that is there is not made again after a kill.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from infra import settings
from infra.errors import ConfigurationError
from infra.processes import child
from infra.store import storage
from infra.store.artifacts import Workspace
from tasks.models import ModelSource, copy_beside_weights, load_tokenizer
from tasks.quantise import compressed, gguf, llama
from tasks.quantise.settings import GGUF, Format

TRIED = (
    "How many customers are there in each city? Answer in one line.",
    "It's 2024: naïve café — 100 % x_y  z\n\n  1.5",
    "SELECT name, COUNT(*) FROM t WHERE id >= 10 AND NOT done;",
)
_CARD = "README.md"
_ANSWER = 32  # tokens
_LEAST_AGREED = 0.5  # share of next tokens; below it is another model's


def main(spec: dict[str, Any], reporter: child.Reporter) -> dict[str, Any]:
    """Make the artifact's files; its counts and facts."""
    form: Format = spec["format"]
    source, work = ModelSource.model_validate(spec["model"]), Workspace.from_description(spec["workspace"])
    folder = source.fetch()
    with reporter.loading("the student"):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype="auto").eval()
    student = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    scratch = settings.work_dir()
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quantise-", dir=scratch) as made:
        target = Path(made) / "model"
        if form in GGUF:
            counts, facts = _gguf(model, source, folder, form, work, Path(made), reporter)
            _write(model, folder, target)
        else:
            counts, facts = {"quantised": compressed.compress(model, form)}, {}
            _write(model, folder, target, form)
            counts["bytes"] = sum(path.stat().st_size for path in target.glob("*.safetensors"))
        work.put_folder("model/", target)
    return {"counts": {**counts, "student_bytes": student}, "facts": {"format": form, **facts}}


def _gguf(
    model: Any, source: ModelSource, folder: Path, form: Format, work: Workspace, made: Path, reporter: child.Reporter
) -> tuple[dict[str, int], dict[str, Any]]:
    """The file, in the workspace; `model` with the weights that it holds."""
    name, threads = f"gguf/student-{form}.gguf", os.cpu_count() or 1
    path, whole = made / Path(name).name, made / "whole.gguf"
    if work.has(name):
        storage.download(work.uri + name, path)
    else:
        reporter.progress(0, 3, doing="converting")
        gguf.convert(folder, whole, source.name)
        reporter.progress(1, 3, doing="quantising")
        gguf.quantise(whole, path, form, threads)
        whole.unlink()
        work.put_file(name, path)
    reporter.progress(2, 3, doing="asking llama.cpp")
    types = gguf.tensor_types(path)
    gguf.dequantised(path, model, source.name)
    alike, agreed, tokens = _tried(model, load_tokenizer(source), path, threads)
    if agreed < _LEAST_AGREED * tokens:
        raise ConfigurationError(
            f"llama.cpp gives {agreed} of {tokens} next tokens that {source.name!r} as {form} should: it computes "
            f"models of this kind otherwise: leave {form} out of quantise.formats"
        )
    fell_back = gguf.fell_back(types, form)
    counts = {"bytes": path.stat().st_size, "quantised": types.total() - types["F32"], "fell_back": fell_back}
    return counts, {"types": dict(types), "texts_alike": alike, "agreed": agreed, "tokens": tokens}


def _tried(model: Any, tokenizer: Any, path: Path, threads: int) -> tuple[list[bool], int, int]:
    """Whether llama.cpp cuts each text alike; next tokens after a greedy answer's that are alike, and of how many."""
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": TRIED[0]}], add_generation_prompt=True, tokenize=False
    )
    texts = [said, *TRIED[1:]]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    how = GenerationConfig(max_new_tokens=_ANSWER, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    with torch.inference_mode():
        exact = model.float()
        answer_1T = exact.generate(torch.tensor([ids[0]]), generation_config=how)
        ours = exact(answer_1T).logits[0].argmax(-1).tolist()
    with llama.opened(path, threads) as theirs:
        alike = [theirs.tokens(text) == expected for text, expected in zip(texts, ids, strict=True)]
        found = theirs.likeliest(answer_1T[0].tolist())
    return alike, sum(a == b for a, b in zip(ours, found, strict=True)), len(ours)


def _write(model: Any, folder: Path, target: Path, form: Format | None = None) -> None:
    """A Hugging Face folder, with what the student is beside its weights."""
    model.generation_config = GenerationConfig()
    if form is None:
        model.to(model.config.dtype).save_pretrained(target, safe_serialization=True)
    else:
        compressed.write(model, target)
    (target / "generation_config.json").unlink(missing_ok=True)
    copy_beside_weights(folder, target)
    if (card := folder / _CARD).is_file():
        shutil.copy(card, target)


if __name__ == "__main__":
    child.run(main, Path(sys.argv[-1]))
