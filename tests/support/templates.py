"""Chat templates in the style of two dozen families, with small tokenizers of their kinds.

What opens and closes a turn, what becomes of a system message and of earlier answers differs in each.
"""

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
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
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
        _LLAMA,
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
    "llama3.2": Family(  # a system turn in every conversation, with today's date
        "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}"
        "{%- endif %}{%- endif %}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
        "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
        "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
        "{{- date_string + '\n\n' + system + '<|eot_id|>' }}{%- for m in messages %}"
        "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
        *("<|eot_id|>", "<|eot_id|>", _LLAMA),
        bos="<|begin_of_text|>",
        own=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "qwen2.5 as it is": Family(  # a system turn of its own where there is none
        "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud."
        " You are a helpful assistant.<|im_end|>\n' }}{%- endif %}" + _CHATML,
        *("<|im_end|>", "<|im_end|>", _IM),
        own=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3 thinking": Family(  # the prompt opens the thought
        "{%- for m in messages %}{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content }}"
        "{%- else %}{%- set thought, said = '', m.content %}{%- if '</think>' in said %}{%- set thought = "
        "said.split('</think>')[0].split('<think>')[-1].strip('\n') %}{%- set said = "
        "said.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>assistant\n' }}{%- if loop.last %}"
        "{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}{{- said.lstrip('\n') }}{%- endif %}"
        "{{- '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}",
        *("<|im_end|>", "<|im_end|>", _IM),
        plain=("<think>", "</think>"),
    ),
    "smollm3": Family(
        "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}{{- '<|im_start|>system\n## "
        "Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' + strftime_now('%d %B %Y') + '\nReasoning Mode: "
        "/think\n\n## Custom Instructions\n\n' + (system.rstrip() or 'You are a helpful AI assistant named SmolLM.') + "
        "'<|im_end|>\n' }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + "
        "'<|im_end|>\n' }}{%- elif m.role == 'assistant' %}{% generation %}{{- '<|im_start|>assistant\n' + "
        "m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}",
        *("<|im_end|>", "<|im_end|>", _IM),
        plain=("<think>", "</think>"),
    ),
    "mistral 7b": Family(  # no system role, and roles that alternate
        "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
        "{% endif %}{% endfor %}",
        *("</s>", "</s>", ("<s>", "</s>")),
        bos="<s>",
        kind="sentence-piece",
    ),
    "mistral small": Family(
        "{%- set today = strftime_now('%Y-%m-%d') %}{{- bos_token }}{%- if messages[0].role == 'system' %}"
        "{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set system = "
        "'You are Mistral Small 3. The current date is ' + today + '.' %}{%- set loop_messages = messages %}"
        "{%- endif %}"
        "{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{%- for m in loop_messages %}{%- if m.role == 'user' %}"
        "{{- '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'assistant' %}{{- m.content + eos_token }}"
        "{%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}{%- endfor %}",
        *("</s>", "</s>", ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")),
        bos="<s>",
    ),
    "gemma3": Family(  # the system message stands at the head of the first question
        "{{ bos_token }}{%- if messages[0].role == 'system' -%}{%- set prefix = messages[0].content + '\n\n' -%}"
        "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set prefix = '' -%}"
        "{%- set loop_messages = messages -%}{%- endif -%}{%- for m in loop_messages -%}"
        "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ prefix if loop.first else '' }}"
        "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}",
        *("<eos>", "<end_of_turn>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")),
        bos="<bos>",
        own=("<eos>", "<end_of_turn>"),
        kind="sentence-piece",
    ),
    "phi4": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
        *("<|im_end|>", "<|im_end|>", (*_IM, "<|im_sep|>")),
    ),
    "olmo2": Family(  # roles that are no tokens
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' + m.content }}"
        "{{ eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}"
        "{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
        *("<|endoftext|>", "<|endoftext|>", ("<|endoftext|>",)),
        bos="<|endoftext|>",
    ),
    "granite 3.3": Family(
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = "
        'messages[1:] %}{%- else %}{%- set system = "Knowledge Cutoff Date: April 2024.\nToday\'s Date: " + '
        "strftime_now('%B %d, %Y') + '.\nYou are Granite, developed by IBM.' %}{%- set loop_messages = messages %}"
        "{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}"
        "{%- for m in loop_messages %}{{- '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + "
        "'<|end_of_text|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}",
        *("<|end_of_text|>", "<|end_of_text|>", ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")),
    ),
    "deepseek v2": Family(  # roles in plain words
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}{% else %}{{ m.content + '\n\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        *("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>", ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")),
        bos="<｜begin▁of▁sentence｜>",
    ),
    "gpt-oss": Family(  # the last answer ends with another token than those before it
        "{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: "
        "2024-06\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\n\nReasoning: medium<|end|>' }}"
        "{%- if messages[0].role == 'system' %}{{- '<|start|>developer<|message|># Instructions\n\n' }}"
        "{{- messages[0].content + '<|end|>' }}"
        "{%- set messages = messages[1:] %}{%- endif %}{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{- '<|return|>' if loop.last else '<|end|>' }}"
        "{%- elif m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}",
        *("<|return|>", "<|return|>"),
        ("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
        own=("<|return|>", "<|call|>"),
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
