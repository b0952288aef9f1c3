"""The teacher's stored scores in a loop of your own: read them, see what they hold, train on them.

    python docs/examples/own_loop.py SHARDS STUDENT ROWS

SHARDS is a copy of the `shards/` of a logits artifact, STUDENT a model's folder or hub name with the teacher's
tokenizer, ROWS what `distilflow export rows.jsonl --form messages` writes. Nothing here needs Prefect or storage.
"""

import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM

from tasks.logits.coverage import CoverageCounter
from tasks.logits.store.format import decode_shard
from tasks.tokens.scored import ScoredRow
from tasks.train.model.losses import DistillationLoss, distillation_sum

LOSS = DistillationLoss(divergence="forward_kl", tail="bucket", kd_weight=0.7)


def main(shards: Path, student: str, rows: str, steps: int = 20, batch: int = 8) -> None:
    # every row that the teacher scored, by its id: a shard is one file, and says so where it is damaged
    scored = {
        row.row_id: row for path in sorted(shards.glob("*.topk")) for row in decode_shard(path.read_bytes(), path.name)
    }

    # the rows themselves, in whatever your code likes; `id` is what pairs them with their scores
    data = load_dataset("json", data_files=rows, split="train").filter(lambda row: row["id"] in scored)

    k = next(iter(scored.values())).topk_ids_RK.shape[1]
    coverage = CoverageCounter(k)
    for row in data:
        coverage.add(scored[row["id"]].logprobs_RK, row["category"])
    held = coverage.summary()
    print(f"{len(data)} rows; the top {k} hold {held['mean']:.1%} of the teacher's probability: {held['by_category']}")

    model = AutoModelForCausalLM.from_pretrained(student, dtype="float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        chosen = data.shuffle(seed=step).select(range(min(batch, len(data))))
        loss = batch_loss(model, [scored[row_id] for row_id in chosen["id"]])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} loss {loss.item():.3f}")


def batch_loss(model: torch.nn.Module, rows: list[ScoredRow]) -> torch.Tensor:
    """Mean over the supervised tokens of a padded batch. The state before a token predicts it: hence `places - 1`."""
    ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
    lengths_B = torch.tensor([len(row.ids) for row in rows])
    mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT.long()).logits
    places = [torch.from_numpy(row.places_R) for row in rows]
    logits_NV = torch.cat([logits_BTV[b, places_R - 1] for b, places_R in enumerate(places)])
    labels_N = torch.cat([ids_BT[b, places_R] for b, places_R in enumerate(places)])
    teacher_ids_NK = torch.cat([torch.from_numpy(row.topk_ids_RK).long() for row in rows])
    teacher_logprobs_NK = torch.cat([torch.from_numpy(row.logprobs_RK) for row in rows])
    return distillation_sum(logits_NV, labels_N, teacher_ids_NK, teacher_logprobs_NK, LOSS) / len(labels_N)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
