"""Which variants are scored beside each other: as many as fit into memory with the teacher. Maths alone.

The teacher scores the held-out rows once for a group, so that fewer groups are less work.
"""

from __future__ import annotations

from collections.abc import Mapping

LOGITS = 1 << 29  # of a batch over the vocabulary: 1 GiB in bf16, 2 GiB in fp32
POSITIONS_AT_ONCE = 256  # 150 MiB for each fp32 intermediate over a vocabulary of 152,000
_INTERMEDIATES = 8
_USED = 0.9  # of the memory that is free: activations and fragments have the rest
_SHARE = 0.5  # of it for variants, beside a teacher that does not fit


def groups(sizes: Mapping[str, int], room: int) -> list[list[str]]:
    """Names in few groups, the `sizes` in bytes of each together at most `room`; each group in the order given.

    First-fit-decreasing: the fewest where all are of one size, at most 11/9 of the fewest and one more otherwise
    (Dósa 2007). What is larger than `room` has a group of its own.
    """
    found: list[list[str]] = []
    taken: list[int] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        place = next((at for at, size in enumerate(taken) if size + sizes[name] <= room), len(found))
        if place == len(found):
            found.append([])
            taken.append(0)
        found[place].append(name)
        taken[place] += sizes[name]
    order = list(sizes)
    return sorted((sorted(group, key=order.index) for group in found), key=lambda group: order.index(group[0]))


def room(free: int, teacher: int, batch: int) -> int:
    """Bytes for variants beside the weights of a teacher and what a `batch` takes, of those that are free.

    A teacher that does not fit is moved through the devices for each batch, however much of it stays there: then the
    variants' share is fixed, so that it is moved for all of them at once.
    """
    usable = int(_USED * free) - batch
    return usable - teacher if teacher < usable else int(_SHARE * usable)


def batch_bytes(longest: int, rows: int, vocabulary: int, teacher_vocabulary: int, width: int) -> int:
    """Logits of a variant's batch and of the teacher's, and what comparing them takes.

    `longest` is in tokens, `width` bytes a logit; a teacher whose scores are stored has no vocabulary here (0).
    """
    cut_for = max(vocabulary, teacher_vocabulary)
    positions = max(longest, min(rows * longest, LOGITS // cut_for))
    return positions * width * (vocabulary + teacher_vocabulary) + _INTERMEDIATES * POSITIONS_AT_ONCE * cut_for * 4
