"""Chat templates of a dozen families, with small tokenizers of their kinds: what closes a turn differs in each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tasks.models import ModelSource

CORPUS = [
    "SELECT name, COUNT(*) FROM books WHERE price >= 10 GROUP BY name;",
    "the name of the book and the price of the book\n  the end of the answer",
    "user assistant system question answer model think",
] * 4


@dataclass(frozen=True)
class Family:
    """`end` closes a turn, `eos` a text; `own` is what generation_config.json lists; `control` are special tokens."""

    template: str
    eos: str
    end: str
    control: tuple[str, ...]
    kind: Literal["byte-level", "sentence-piece"] = "byte-level"
    bos: str = ""
    own: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "qwen2.5": Family(_CHATML, "<|im_end|>", "<|im_end|>", _IM, own=("<|im_end|>", "<|endoftext|>")),
    "base with a template": Family(_CHATML, "<|endoftext|>", "<|im_end|>", _IM, own=("<|endoftext|>",)),
    "qwen3": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        *("<|im_end|>", "<|im_end|>", _IM),
        plain=("<think>", "</think>"),
    ),
    "qwen3 with thoughts": Family(  # after the last question an answer has thoughts, before it none
        "{% set ns = namespace(asked=0) %}{% for m in messages if m.role == 'user' %}{% set ns.asked = loop.index %}"
        "{% endfor %}{% set seen = namespace(users=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set seen.users = seen.users + 1 %}{% endif %}<|im_start|>{{ m.role }}\n{% if m.role != 'assistant' %}"
        "{{ m.content }}{% else %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
        "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content "
        "else '' %}{% if seen.users == ns.asked %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}"
        "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        *("<|im_end|>", "<|im_end|>", _IM),
        plain=("<think>", "</think>"),
    ),
    "deepseek": Family(  # no answer has thoughts, not even the last
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}"
        "{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        *("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>",
        plain=("<think>", "</think>"),
    ),
    "mistral": Family(  # the system message moves along to the last question
        "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list | length %}"
        "{% set seen = namespace(users=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set seen.users = seen.users + 1 %}[INST]{% if messages[0].role == 'system' and seen.users == asked %}"
        "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}",
        *("</s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]")),
        bos="<s>",
    ),
    "gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "<start_of_turn>{{ role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        *("<eos>", "<end_of_turn>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")),
        bos="<bos>",
        own=("<eos>", "<end_of_turn>"),
        kind="sentence-piece",
    ),
    "phi3": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        *("<|endoftext|>", "<|end|>", ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
        own=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        kind="sentence-piece",
    ),
    "llama3": Family(
        "{% set ns = namespace(first=true) %}{% for m in messages %}{{ bos_token if loop.first }}<|start_header_id|>"
        "{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        *("<|end_of_text|>", "<|eot_id|>"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        own=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "llama2": Family(
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        *("</s>", "</s>", ("<s>", "</s>")),
        bos="<s>",
        kind="sentence-piece",
    ),
    "vicuna": Family(
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT: {% else %}{{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}",
        *("</s>", "</s>", ("<s>", "</s>")),
        kind="sentence-piece",
    ),
    "glm4": Family(
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        *("<|endoftext|>", "<|endoftext|>"),
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
        own=("<|endoftext|>", "<|user|>", "<|observation|>"),
    ),
    "granite": Family(
        "{% for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        *("<|end_of_text|>", "<|end_of_text|>", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")),
    ),
    "no token at all": Family(
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        *("</s>", "</s>", ("<s>", "</s>")),
    ),
}


def source_of(family: Family, folder: Path, name: str = "some") -> ModelSource:
    """The family's tokenizer and configuration as a model's folder, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.eos,
        "pad_token": family.eos,
        "chat_template": family.template,
        **({"bos_token": family.bos} if family.bos else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "config.json").write_text(json.dumps({"vocab_size": tokenizer.get_vocab_size()}))
    if family.own:
        own = [tokenizer.token_to_id(token) for token in family.own]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    return ModelSource(name=name, path=str(folder))


def _tokenizer(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.kind == "sentence-piece"))
    if family.kind == "byte-level":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # as transformers writes Llama 2's: a space before all text, spaces as ▁, bytes for what is unknown
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        alphabet = sorted({character for text in CORPUS for character in text} - {"\n", " "})
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if family.kind == "sentence-piece" else []
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=bytes_, initial_alphabet=alphabet, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bytes_:  # bytes are ordinary tokens
        told = json.loads(tokenizer.to_str())
        told["added_tokens"] = []
        tokenizer = Tokenizer.from_str(json.dumps(told))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.plain])
    return tokenizer
