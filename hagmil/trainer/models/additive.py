"""Stage model with the additive read-out (Javed et al., "Additive MIL", NeurIPS 2022, section 3.2).

For a bag of n rows:

1. Compute rows: by the blocks of the Integrated Attention Transformer (steps 1 and 2 of
   :mod:`hagmil.trainer.models.iat`), in which rows attend to one another; or by their projections alone (Linear,
   LayerNorm, GELU for each width), so that each row depends on its own patch only.
2. Score each row by gated attention over LayerNorm(row); softmax over rows gives weights.
3. The logits of a row are a linear function of LayerNorm(row). Times the weight of the row, they are its evidence.
4. The logits of the bag are the sum of the evidence over rows, plus a bias.

The evidence states how much each patch adds to the logit of each class. With independent rows it describes the patch
alone; the other patches change it only through the sum in the softmax.

The weighted mean is computed in float32 in every precision, because the weights of a large bag are near the smallest
float16 number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hagmil.trainer.models.iat import AttentionBlock, GatedAttention, IatConfig, TrainingOutput, projection


class AdditiveOutput(NamedTuple):
    """The outputs of an additive stage model for a bag, as in the contract of exported models.

    Args:
        logits: float (classes,).
        attention: float (patches,), raw scores, before any softmax.
        evidence: float (classes, patches); its sum over patches, plus a constant for each class, equals the logits.
    """

    logits: Tensor
    attention: Tensor
    evidence: Tensor


class _ReadOut(NamedTuple):
    logits: Tensor  # (classes,)
    scores: Tensor  # (n,)
    evidence: Tensor  # (classes, n)
    hidden: Tensor  # (n, hidden_width)


class _RowBlock(AttentionBlock):
    """A block of the transformer that gives rows and no slide embedding."""

    def forward(self, rows: Tensor) -> Tensor:
        """Run the block on rows (n, width_in): (n, width)."""
        return self.attend(rows)


class AdditiveReadout(nn.Module):
    """Attention and logits of a bag from its rows (steps 2 to 4).

    Args:
        width: width of a row.
        classes: number of classes.
        config: sizes of the gates.
    """

    def __init__(self, width: int, classes: int, config: IatConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gates = GatedAttention(width, config.hidden_width, config.gate_width, config.gate_dropout)
        self.classifier = nn.Linear(width, classes)  # its bias is added once, to the logits of the bag

    def forward(self, rows: Tensor) -> _ReadOut:
        """Read out rows (n, width)."""
        rows = self.norm(rows)
        scores, hidden = self.gates(rows)
        weights = torch.softmax(_at_least_float32(scores).unsqueeze(0), dim=1)  # step 2: (1, n), two axes for TensorRT
        row_logits = F.linear(rows, self.classifier.weight)  # (n, classes)
        evidence = weights * _at_least_float32(row_logits).mT  # step 3: (classes, n)
        logits = evidence.sum(dim=1) + self.classifier.bias  # step 4: (classes,)
        return _ReadOut(logits, scores, evidence, hidden)


class AdditiveStageModel(nn.Module):
    """The model of one stage with the additive read-out: maps the features of a bag to logits, attention and evidence.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: kind of rows and sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: IatConfig) -> None:
        super().__init__()
        self.config = config
        widths_in = (feature_dim, *config.widths[:-1])
        self.blocks = nn.ModuleList(
            _RowBlock(width_in, width, config) if config.rows == "transformer" else projection(width_in, width)
            for width_in, width in zip(widths_in, config.widths, strict=True)
        )
        self.readout = AdditiveReadout(config.widths[-1], classes, config)
        self.instance_classifiers = nn.ModuleList(nn.Linear(config.hidden_width, 2) for _ in range(classes))

    def forward(self, features: Tensor) -> AdditiveOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, the attention that selects the patches of the next stage, and the evidence of each patch.
        """
        output = self._run(features, checkpoint_blocks=False)
        return AdditiveOutput(output.logits, output.scores, output.evidence)

    def forward_training(self, features: Tensor, *, checkpoint_blocks: bool = False) -> TrainingOutput:
        """Classify a bag as ``forward`` does, and return the hidden features instead of the evidence.

        Args:
            features: float32 (patches, feature_dim), at least one patch.
            checkpoint_blocks: keep only the input of each block and of the read-out, and compute them again in the
                backward pass with the same dropout. This gives the same gradients with less memory.
        """
        output = self._run(features, checkpoint_blocks=checkpoint_blocks)
        return TrainingOutput(output.logits, output.scores, output.hidden)

    def _run(self, rows: Tensor, *, checkpoint_blocks: bool) -> _ReadOut:
        output: _ReadOut
        for block in self.blocks:  # step 1
            rows = checkpoint(block, rows, use_reentrant=False) if checkpoint_blocks else block(rows)
        readout = self.readout
        output = checkpoint(readout, rows, use_reentrant=False) if checkpoint_blocks else readout(rows)
        return output


def _at_least_float32(values: Tensor) -> Tensor:
    """Convert 16-bit values to float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
