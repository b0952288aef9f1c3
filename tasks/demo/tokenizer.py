"""The demo models' tokenizer: byte-level BPE trained on the domain, Qwen2's pre-tokenizer, ChatML template.

Teacher and student share it. Table and column names become one or two tokens, so that a whole row with its
schema is about 68 tokens. The domain runs out of merges a little below `VOCAB_SIZE`.
"""

import random
from collections.abc import Iterator
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks.demo.build_data import rows_of_split

VOCAB_SIZE = 1280
MAX_TOKENS = 512
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# Qwen2's own split: single digits, words with one leading non-letter, runs of punctuation.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt_text(instruction: str, context: str) -> str:
    """The pipeline's prompt for one row, up to where the response begins."""
    content = f"{instruction}\n\n{context}" if context else instruction
    return f"{IM_START}user\n{content}{IM_END}\n{IM_START}assistant\n"


def _corpus(rows: int) -> Iterator[str]:
    for row in islice(rows_of_split(held_out=False, rng=random.Random("tokenizer")), rows):
        yield prompt_text(row["instruction"], row["input"]) + row["output"]


def train_tokenizer(rows: int = 20_000) -> PreTrainedTokenizerFast:
    """Train it on `rows` rows of the training split; about five seconds, the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(rows), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
