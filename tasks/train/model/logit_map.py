"""What a model does around its head: a factor before it (MiniCPM) or after it (Granite, Cohere), a soft cap (Gemma).

Measured, not read from the config: HyperCLOVA X multiplies by the `logits_scaling` that Granite divides by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from infra.errors import ConfigurationError

_SMALL, _HUGE = 2.0**-10, 2.0**60  # where a cap does not show yet, and where it is all that shows
_PROBES = (_SMALL, _HUGE, -_HUGE, *(sign * 10.0**power for power in range(-2, 4) for sign in (1, -1)))


@dataclass(frozen=True)
class LogitMap:
    """`cap · tanh(scale · z / cap)` of the head's output z, `scale · z` without a cap. The head gets `before` · h."""

    scale: float = 1.0
    cap: float | None = None
    before: float = 1.0

    def __call__(self, head_output: Tensor) -> Tensor:
        """The logits, of any shape."""
        logits = head_output if self.scale == 1.0 else head_output * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class _Hidden(BaseModelOutputWithPast):
    """A decoder's output that has nothing else, whatever its family looks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def measured(model: Any) -> LogitMap:
    """What the causal LM's own forward does, between decoder and head that only stand in: no weight is touched.

    Raises ConfigurationError where it is no map of this kind.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is model or decoder is head:
        raise ConfigurationError(f"{type(model).__name__} cannot be trained here: it is no decoder with a head")
    probes_P = torch.tensor(_PROBES)
    hidden_11H = torch.linspace(-1, 2, model.config.get_text_config().hidden_size)[None, None]
    seen: list[torch.Tensor] = []

    def stand_in(given_11H: torch.Tensor) -> torch.Tensor:
        seen.append(given_11H)
        return probes_P[None, None]

    vars(decoder)["forward"] = lambda *_, **__: _Hidden(last_hidden_state=cast(Any, hidden_11H))
    vars(head)["forward"] = stand_in
    try:
        with torch.no_grad():
            logits_P = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits[0, 0].float()
    except (AttributeError, TypeError, RuntimeError, IndexError) as error:
        raise ConfigurationError(
            f"{type(model).__name__} cannot be trained here: its forward is unlike others"
        ) from error
    finally:
        del vars(decoder)["forward"], vars(head)["forward"]
    before = float(seen[0][0, 0, -1]) / 2
    if len(seen) != 1 or seen[0].shape != hidden_11H.shape or not torch.allclose(seen[0].float(), before * hidden_11H):
        raise ConfigurationError(f"{type(model).__name__} cannot be trained here: more than a head follows its decoder")
    scale, most = float(logits_P[0]) / _SMALL, float(logits_P[1])
    cap = None if abs(most) > _HUGE**0.5 else most
    found = LogitMap(1.0 if abs(scale - 1) < 1e-6 else scale, cap, before)
    if logits_P.shape != probes_P.shape or not torch.allclose(found(probes_P), logits_P, rtol=1e-4):
        raise ConfigurationError(
            f"{type(model).__name__} cannot be trained here: what it does to its logits is neither a factor nor a cap"
        )
    return found
