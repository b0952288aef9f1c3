"""The plan of shards: the same for every worker, whatever order the rows come in."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.logits.shards import plan
from tasks.tokens.rows import TokenisedRow


@given(st.lists(st.integers(2, 60), min_size=1, max_size=40), st.integers(1, 200), st.randoms())
def test_any_worker_makes_the_same_plan_and_every_row_is_in_one_shard(
    lengths: list[int], tokens_per_shard: int, random: object
) -> None:
    rows = [TokenisedRow(f"row{index:02}", [1] * length, 1) for index, length in enumerate(lengths)]
    shards = plan(rows, tokens_per_shard)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(shuffled, tokens_per_shard) == shards
    planned = [row for shard in shards for row in shard.rows]
    assert sorted(row.row_id for row in planned) == [row.row_id for row in rows]
    assert [len(row.ids) for row in planned] == sorted(lengths)
    assert [shard.name for shard in shards] == [f"shards/{index:05}.topk" for index in range(len(shards))]
    for shard in shards:
        assert len(shard.rows) == 1 or sum(len(row.ids) for row in shard.rows) <= tokens_per_shard
