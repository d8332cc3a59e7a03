"""The trunk that fuses what the eyes saw, and one answer head per track.

Each eye is standardized, projected and normalized; a missing eye is replaced by a learned vector and named
in a mask, so that "no photo" is something the trunk knows, not a face of zeros. The trunk adds a small
network to a plain linear path: with a handful of patients an answer the linear path does most of the work.

Nothing here draws from torch's global generator: weights come from the generator given, dropout is the
training's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from common.tracks import Eye

SMALLEST_SPREAD = 1e-5


class FusionTrunk(nn.Module):
    """Vectors by eye in, logits by track out.

    Args:
        widths: Length of an eye's vector, by open eye.
        answers: Number of answers, by track.
        hidden: Width of the trunk.
        generator: Where the first weights come from.
    """

    def __init__(
        self, widths: Mapping[Eye, int], answers: Mapping[str, int], hidden: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.eyes = tuple(sorted(widths))
        self.answers = dict(answers)
        for eye in self.eyes:
            self.register_buffer(f"mean_{eye}", torch.zeros(widths[eye]))
            self.register_buffer(f"spread_{eye}", torch.ones(widths[eye]))
        self.projections = nn.ModuleDict({eye: _linear(widths[eye], hidden, generator) for eye in self.eyes})
        self.norms = nn.ModuleDict({eye: nn.LayerNorm(hidden) for eye in self.eyes})
        self.missing = nn.ParameterDict(
            {eye: nn.Parameter(torch.randn(hidden, generator=generator)) for eye in self.eyes}
        )
        self.join = _linear(len(self.eyes) * (hidden + 1), hidden, generator)
        self.inner_norm = nn.LayerNorm(hidden)
        self.inner = _linear(hidden, hidden, generator)
        self.outer = _linear(hidden, hidden, generator)
        self.last_norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleDict(
            {track: _linear(hidden, count, generator) for track, count in sorted(answers.items())}
        )

    def standardize_by(self, vectors: Mapping[Eye, Tensor], present: Mapping[Eye, Tensor]) -> None:
        """Take each eye's mean and spread from the training patients who bring it."""
        for eye in self.eyes:
            brought = vectors[eye][present[eye]]
            if len(brought) == 0:
                continue
            self.get_buffer(f"mean_{eye}").copy_(brought.mean(dim=0))
            self.get_buffer(f"spread_{eye}").copy_(brought.std(dim=0, correction=0) + SMALLEST_SPREAD)

    def standardized(self, eye: Eye, vectors: Tensor) -> Tensor:
        """Vectors of one eye, (patients, width), in units of the training patients' spread."""
        return (vectors - self.get_buffer(f"mean_{eye}")) / self.get_buffer(f"spread_{eye}")

    def forward(self, vectors: Mapping[Eye, Tensor], present: Mapping[Eye, Tensor]) -> dict[str, Tensor]:
        """Logits by track, (patients, answers), from standardized vectors.

        Guarantee: the vector of an eye that is not present has no influence.
        """
        parts = [self._view(eye, vectors[eye], present[eye]) for eye in self.eyes]
        mask = torch.stack([present[eye] for eye in self.eyes], dim=1).float()
        joined = self.join(torch.cat([*parts, mask], dim=1))
        thought = joined + self.outer(functional.gelu(self.inner(self.inner_norm(joined))))
        fused = self.last_norm(thought)
        return {track: head(fused) for track, head in self.heads.items()}

    def _view(self, eye: Eye, vectors: Tensor, present: Tensor) -> Tensor:
        seen = self.norms[eye](self.projections[eye](vectors))
        return torch.where(present.unsqueeze(1), seen, self.missing[eye])


def hide_eyes(
    present: Mapping[Eye, Tensor], probability: float, generator: torch.Generator
) -> dict[Eye, Tensor]:
    """Hide each present eye with this probability (modality dropout).

    Guarantee: a patient who brings an eye keeps at least one.
    """
    eyes = list(present)
    brought = torch.stack([present[eye] for eye in eyes], dim=1)
    lots = torch.rand(brought.shape, generator=generator).masked_fill(~brought, -1.0)
    # The eye with the highest lot stays in any case: hidden are those whose lot falls below the probability.
    best = functional.one_hot(lots.argmax(dim=1), len(eyes)).bool()
    kept = brought & ((lots >= probability) | best)
    return {eye: kept[:, column] for column, eye in enumerate(eyes)}


def class_weights(labels: NDArray[np.int64], answers: int) -> NDArray[np.float32]:
    """Weight of each answer, (answers,), so that all answers with patients count the same; mean 1 a patient.

    Args:
        labels: Indices of answers, (patients,); -1 for a patient without a label.
        answers: Number of answers; one without patients weighs 0, and its head learns from the others only.
    """
    counts = np.bincount(labels[labels >= 0], minlength=answers)
    seen = counts > 0
    weights = np.zeros(answers, dtype=np.float32)
    weights[seen] = counts.sum() / (seen.sum() * counts[seen])
    return weights


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer whose weights are uniform within 1 / sqrt(inputs), its bias zero."""
    layer = skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer
