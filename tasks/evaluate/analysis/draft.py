"""What a student is worth as its teacher's draft in speculative decoding. Maths alone (Leviathan et al. 2211.17192)."""

from __future__ import annotations

DRAFTED = 4  # tokens that are drafted for each step of the teacher, where nobody said another number


def tokens_a_step(acceptance: float, drafted: int) -> float:
    """Expected tokens that one step of the teacher yields with so many drafted (eq. 1): (1 − α^(γ+1)) / (1 − α).

    It takes acceptances as independent of each other, so that the share α stands for all places.
    """
    if acceptance >= 1:
        return drafted + 1.0
    return (1 - acceptance ** (drafted + 1)) / (1 - acceptance)
