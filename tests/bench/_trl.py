"""One training with TRL's SFTTrainer, for `python -m tests.bench sft_vs_trl`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class CountingTrainer(SFTTrainer):  # type: ignore[misc]
        """Counts the tokens that are no padding."""

        useful = 0

        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.useful += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            return super().training_step(model, inputs, *rest)

    each = spec["global_batch"] // int(os.environ["WORLD_SIZE"])
    best = {"packing": True, "per_device_train_batch_size": 1, "gradient_checkpointing": False}
    way = best if spec["way"] == "trl_best" else {"per_device_train_batch_size": each}
    settings = SFTConfig(
        output_dir=str(Path(spec["out"]).with_suffix("")),
        max_length=spec["max_length"],
        max_steps=spec["steps"],
        learning_rate=1e-4,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **way,
    )
    rows = load_dataset("json", data_files=spec["rows"], split="train", cache_dir=settings.output_dir)
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    trainer = CountingTrainer(model=model, args=settings, train_dataset=rows, processing_class=tokenizer)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    useful = torch.tensor([trainer.useful])
    torch.distributed.all_reduce(useful)
    if int(os.environ["RANK"]) == 0:
        Path(spec["out"]).write_text(json.dumps({"tokens_s": int(useful) / seconds}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
