"""What belongs to a model travels with it, and nothing else that lies beside its weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.errors import ConfigurationError
from tasks.models import _folder_digest, copy_beside_weights, resolve

OF_A_MODEL = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("tokenizer.model", "qwen.tiktoken", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja"),
    *("additional_chat_templates/tools.jinja", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md"),
}
OF_OTHERS = {
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    *("pytorch_model.bin.index.json", "consolidated.00.pth", "params.json", "tf_model.h5", "optimizer.pt"),
    *("trainer_state.json", "training_args.bin", "notes-secret.txt", "README.md", ".env", ".git/config"),
    *("modeling_custom.py", "runs/events.out", "onnx/model.onnx", "adapter_model.safetensors", "adapter_config.json"),
}


def _fill(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_a_model_is_travels_by_a_list(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    _fill(source, OF_A_MODEL | OF_OTHERS)
    target.mkdir()
    copy_beside_weights(source, target)
    assert _names(target) == OF_A_MODEL


def test_what_was_written_anew_stays(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    _fill(source, {"config.json", "tokenizer.json"})
    target.mkdir()
    (target / "config.json").write_text("of the student")
    copy_beside_weights(source, target)
    assert (target / "config.json").read_text() == "of the student"
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"


def test_only_what_a_model_is_makes_it_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    _fill(folder, OF_A_MODEL | OF_OTHERS)
    before = _folder_digest(str(folder))
    (folder / "notes-secret.txt").write_text("changed")
    (folder / "optimizer.pt").unlink()
    _folder_digest.cache_clear()
    assert _folder_digest(str(folder)) == before
    for name in ("model.safetensors", "model.safetensors.index.json", "chat_template.jinja", "tokenizer.model"):
        (folder / name).write_text("changed")
        _folder_digest.cache_clear()
        assert before != (before := _folder_digest(str(folder))), name


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["config.json", "tokenizer.json", "model.safetensors"], None),
        (["config.json", "tokenizer.json", "model-00001-of-00002.safetensors"], None),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], r"\*.safetensors"),
        (["config.json", "tokenizer.model", "model.safetensors"], "tokenizer.json"),
        (["model.gguf"], "config.json"),
    ],
)
def test_a_hub_model_without_what_is_needed_is_refused_before_a_download(
    names: list[str], missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repository: info)
    if missing is None:
        assert resolve("some/model", "student").revision == "abc"
    else:
        with pytest.raises(ConfigurationError, match=f"student 'some/model': some/model has no {missing} on the hub"):
            resolve("some/model", "student")
