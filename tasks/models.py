"""Where model weights come from: a preset, a folder, the hub, or an artifact of ours.

A `ModelSource` is small, JSON, and says which weights (identity) apart from where they lie.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from infra.errors import ConfigurationError
from infra.processes.program import lean_imports
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, digest_of
from tasks.shipped import MODELS

STUDENTS = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B")}
TEACHERS = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("14B", "32B", "72B")}
# What each says on the hub, as a model card's fields.
_OTHER = "https://huggingface.co/{}/blob/main/LICENSE"
LICENCES: dict[str, dict[str, str]] = {
    name: {"license": "other", "license_name": special, "license_link": _OTHER.format(name)}
    if (special := {"3B": "qwen-research", "72B": "qwen"}.get(size))
    else {"license": "apache-2.0"}
    for size, name in (STUDENTS | TEACHERS).items()
}
_PRESETS = {
    role: {name: str(folder) for name, folder in MODELS[role].items()} | hub
    for role, hub in (("student", STUDENTS), ("teacher", TEACHERS))
}


# What a model is beside its weights: configuration, tokenizer, templates, licence. Whatever else lies in a folder
# (other formats' weights, their index, an optimizer, notes) is not the model's and goes nowhere.
BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"}
_ANY_LENGTH = 1 << 30


class ModelSource(BaseModel):
    """Exactly one of a local folder, a hub repository at a revision, or an artifact."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    artifact: ArtifactRef | None = None

    def identity(self) -> str:
        """What changes when the weights change."""
        if self.artifact is not None:
            return f"artifact:{self.artifact.sha256}"
        if self.path is not None:
            return f"folder:{_folder_digest(self.path)}"
        return f"hub:{self.hub}@{self.revision}"

    def fetch(self) -> Path:
        """A local folder with the weights (downloads where it has to)."""
        if self.artifact is not None:
            return ArtifactReader(self.artifact).folder("model/")
        if self.path is not None:
            return Path(self.path)
        from huggingface_hub import snapshot_download

        assert self.hub is not None
        patterns = [*BESIDE_WEIGHTS, *_WEIGHTS]
        return Path(snapshot_download(self.hub, revision=self.revision, allow_patterns=patterns))

    def config(self) -> dict[str, Any]:
        """The text model's configuration; what config.json leaves to its family's defaults where a size is missing.

        Raises ConfigurationError where there is none, or none that can be read.
        """
        whole = self.json_file("config.json")
        config = {**whole, **(whole.get("text_config") or {})}
        if config.keys() >= _SIZES or "model_type" not in whole:
            return config
        from transformers import CONFIG_MAPPING  # which takes seconds to import

        if whole["model_type"] not in CONFIG_MAPPING:
            return config
        text: dict[str, Any] = CONFIG_MAPPING[whole["model_type"]].from_dict(whole).get_text_config().to_dict()
        return text

    def check_weights(self) -> None:
        """Refuse a local folder whose weights are not all there; raises ConfigurationError. The hub checks its own."""
        if self.path is None:
            return
        index = self.json_file("model.safetensors.index.json").get("weight_map") or {}
        for name in sorted({*index.values(), *(path.name for path in Path(self.path).glob("*.safetensors"))}):
            path = Path(self.path) / name
            if not path.is_file():
                raise ConfigurationError(
                    f"model {self.name!r}: {name} is missing, which model.safetensors.index.json names: fetch it again"
                )
            with path.open("rb") as weights:
                head = weights.read(8)
            if head == b"version ":
                raise ConfigurationError(
                    f"model {self.name!r}: {name} is a pointer of Git LFS: fetch its content (git lfs pull)"
                )
            if len(head) < 8 or 8 + int.from_bytes(head, "little") > path.stat().st_size:
                raise ConfigurationError(
                    f"model {self.name!r}: {name} is cut off or no safetensors file: fetch it again"
                )

    def context(self) -> int:
        """How many tokens of a text the model was made for.

        Rotary embeddings of some kinds change all rows of a batch once one is longer than the original context.
        """
        config = self.config()
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
        length = config.get("max_position_embeddings") or config.get("n_positions") or _ANY_LENGTH
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su", "dynamic"):
            original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            return int(original or length)
        return int(length)

    def json_file(self, name: str) -> dict[str, Any]:
        """A file of JSON, {} where there is none; ConfigurationError where it is something else."""
        text = self.text_file(name)
        try:
            content: dict[str, Any] = json.loads(text or "{}")
        except ValueError as error:
            pointer = (text or "").startswith("version https://git-lfs")
            why = "is a pointer of Git LFS: fetch its content (git lfs pull)" if pointer else f"is not JSON ({error})"
            raise ConfigurationError(f"model {self.name!r}: {name} {why}") from error
        return content

    def text_file(self, name: str) -> str | None:
        """A small file of the model (config, tokenizer) without its weights, or None where it has none."""
        if self.artifact is not None:
            reader = ArtifactReader(self.artifact)
            return reader.read(f"model/{name}").decode() if f"model/{name}" in reader.names() else None
        if self.path is not None:
            path = Path(self.path) / name
            return path.read_text() if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        assert self.hub is not None
        try:
            return Path(hf_hub_download(self.hub, name, revision=self.revision)).read_text()
        except EntryNotFoundError:
            return None


def copy_beside_weights(source: Path, target: Path) -> None:
    """Copy what a model is beside its weights into a folder that holds its weights; what is there already stays."""
    for pattern in BESIDE_WEIGHTS:
        for path in sorted(source.glob(pattern)):
            copy = target / path.relative_to(source)
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, copy)


def resolve(name: str, role: str) -> ModelSource:
    """The model that a `student` or `teacher` parameter names; ConfigurationError where there is none.

    A hub name is resolved to a commit here, so that a run is reproducible and a moved branch is noticed.
    """
    presets = _PRESETS[role]
    target = presets.get(name, name)
    if Path(target).is_dir():
        folder = Path(target).absolute()
        for wanted in ("config.json", "tokenizer_config.json"):
            if not (folder / wanted).is_file():
                raise ConfigurationError(f"{role} {name!r}: the folder has no {wanted}")
        if not list(folder.glob("*.safetensors")):
            raise ConfigurationError(f"{role} {name!r}: the folder has no *.safetensors weights")
        return ModelSource(name=name, path=str(folder))
    if target.count("/") != 1 or target.startswith((".", "/", "~")):
        raise ConfigurationError(
            f"unknown {role} {name!r}: use one of {', '.join(presets)}, a folder, or a hub name such as "
            "Qwen/Qwen2.5-0.5B-Instruct"
        )
    return ModelSource(name=name, hub=target, revision=_hub_commit(role, name, target))


def _hub_commit(role: str, name: str, repository: str) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        info = huggingface_hub.HfApi().model_info(repository)
    except OfflineModeIsEnabled:
        try:
            return Path(huggingface_hub.snapshot_download(repository, local_files_only=True)).name
        except LocalEntryNotFoundError as error:
            raise ConfigurationError(f"{role} {name!r}: offline, and {repository} is not in HF_HOME") from error
    except HfHubHTTPError as error:
        raise ConfigurationError(
            f"{role} {name!r}: the hub does not give {repository} ({error.response.status_code}): "
            "check the name, and HF_TOKEN if it is gated"
        ) from error
    except Exception as error:
        # the hub's client raises whatever its transport does (httpx, ssl, sockets): all mean "not reached"
        raise ConfigurationError(
            f"{role} {name!r}: the hub cannot be reached for {repository} ({type(error).__name__}): "
            "check the network, or give a folder that holds the model"
        ) from error
    names = [file.rfilename for file in info.siblings or ()]
    for wanted in ("config.json", "tokenizer.json", "*.safetensors"):
        if names and not fnmatch.filter(names, wanted):
            raise ConfigurationError(f"{role} {name!r}: {repository} has no {wanted} on the hub: choose another model")
    return str(info.sha)


@functools.cache
def _folder_digest(path: str) -> str:
    """Of what a model is: what else lies there makes it no other model."""
    folder, patterns = Path(path), (*BESIDE_WEIGHTS, *_WEIGHTS)
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return digest_of({file.relative_to(folder).as_posix(): storage.file_digest(file) for file in files})[:32]


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer, with a pad token."""
    with lean_imports():
        from transformers import AutoTokenizer

    where = {"revision": source.revision} if source.hub else {}
    tokenizer = AutoTokenizer.from_pretrained(source.hub or source.fetch(), trust_remote_code=False, **where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
