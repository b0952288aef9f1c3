"""Chat templates that know tools, each as its family writes them, with small tokenizers of its kind."""

from __future__ import annotations

from tests.support.templates import FAMILIES, Family

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKS = ("<tool_call>", "</tool_call>")  # tokens of Qwen's that are no special ones
_SYSTEM = (
    "{% if tools %}<|im_start|>system\n{{ messages[0].content if messages[0].role == 'system' else 'Help.' }}\n\n"
    "# Tools\n<tools>{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}{{ '\n' }}</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
)
_RESULTS = (  # results in a row are one turn of the user's
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}{{ '\n' }}"
    "<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
)
_CALLS = (
    "{% for call in m.tool_calls %}{% set call = call.function %}{{ '\n' if not loop.first or m.content }}"
    '<tool_call>\n{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_QWEN = (
    _SYSTEM + "{% for m in messages %}{% if m.role == 'tool' %}" + _RESULTS + "{% elif m.role == 'assistant' %}"
    "<|im_start|>assistant\n{THOUGHT}{{ m.content }}{% if m.tool_calls %}" + _CALLS + "{% endif %}<|im_end|>\n"
    "{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_TOKENS = ("<|im_end|>", "<|im_end|>", _IM)
_QWEN25 = _QWEN.replace("{THOUGHT}", "")
_LAST_ALONE = "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
_XML = (
    "{% for call in m.tool_calls %}{% set call = call.function %}<tool_call>\n<function={{ call.name }}>\n"
    "{% for name, value in call.arguments | items %}<parameter={{ name }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
    "{% endfor %}"
)

TOOL_FAMILIES = {
    "qwen2.5": Family(_QWEN25, *_QWEN_TOKENS, plain=_MARKS),
    "qwen3": Family(  # the last answer alone has thoughts: another one is not what it would be in the end
        _QWEN.replace("{THOUGHT}", _LAST_ALONE), *_QWEN_TOKENS, plain=(*_MARKS, "<think>", "</think>")
    ),
    "qwen3 coder": Family(_QWEN25.replace(_CALLS, _XML), *_QWEN_TOKENS, plain=_MARKS),
    "llama3.1": Family(  # tools before the first question; results as JSON, as all that can be iterated over
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>"
        "\n\n{{ m.content | tojson }}<|eot_id|>{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
        "{% set call = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>{% else %}'
        "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{% if tools and m.role == 'user' and loop.first %}"
        "{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n{% endfor %}{% endif %}{{ m.content | trim }}"
        "<|eot_id|>{% endif %}{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        *("<|end_of_text|>", "<|eot_id|>"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
    ),
    "mistral": Family(  # tools before the last question; ids of nine characters
        "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list | length %}"
        "{% set seen = namespace(users=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set seen.users = seen.users + 1 %}{% if tools and seen.users == asked %}[AVAILABLE_TOOLS]"
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
        "{% elif m.tool_calls is defined %}[TOOL_CALLS][{% for call in m.tool_calls %}{% if call.id | length != 9 %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
        '{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}{{ \', \' if not loop.last }}{% endfor %}]'
        "{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{\"content\": {{ m.content | tojson }}, "
        '"call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}',
        *("</s>", "</s>"),
        (
            *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
            *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ),
        bos="<s>",
    ),
    "deepseek": Family(  # a call only where nothing is said beside it, and its arguments as the text that they are
        "{{ bos_token }}{% if tools %}{{ tools | tojson }}\n\n{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.role == 'assistant' and m.content is none %}"
        "<｜Assistant｜>{% for call in m.tool_calls %}"
        "{{ '<｜call｜>' + call.function.name + '\n' + call.function.arguments }}{% endfor %}"
        "<｜end▁of▁sentence｜>{% elif m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}"
        "<｜end▁of▁sentence｜>{% elif m.role == 'tool' %}<｜output｜>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        *("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        (
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<｜call｜>",
            "<｜output｜>",
        ),
        bos="<｜begin▁of▁sentence｜>",
    ),
}
# Each writes something of tools, and not all of it.
IN_PART = {
    "no definitions": TOOL_FAMILIES["qwen2.5"].template.replace("{% if tools %}", "{% if false %}"),
    "no calls": TOOL_FAMILIES["qwen2.5"].template.replace(_CALLS, ""),
    "no results": TOOL_FAMILIES["qwen2.5"].template.replace("{{ m.content }}\n</tool_response>", "\n</tool_response>"),
    "a dict as Python writes it": TOOL_FAMILIES["qwen2.5"].template.replace(
        "{{ call.arguments | tojson }}", "{{ call.arguments ~ '' if call.arguments is mapping else '' }}"
    ),
    "every role alike": FAMILIES["qwen2.5"].template,
}
