"""The straight-through estimator: what back-propagation through the surrogate gives, as it is.

The surrogate's derivative stands in the quantizer's backward pass, so nothing is left to do here.
Cost: one forward and one backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fogzo_repro.estimators.protocol import Probes, QuantizedWeight


class Ste:
    """STE in the training loop: it asks for no probes."""

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Return False: there is nothing to do at any step."""
        return False

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: Probes,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> None:
        """Leave the STE gradient in place."""


build = Ste
