"""Mean and max pooling, the simplest heads.

Mean pooling: the mean of the patches' features, through linear layers with a ReLU between them.

Max pooling (Campanella et al. 2019): the same layers on each patch; the patch with the highest probability gives the
logits of the bag. With two classes it is the probability of the second class, which stands for the finding; with more
classes, the highest of any class.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from hagmil._models import FrozenModel
from hagmil.trainer.models.iat import StageOutput
from hagmil.trainer.models.limits import Dropout


class PoolingConfig(FrozenModel):
    """Sizes of mean and max pooling."""

    hidden_widths: tuple[int, ...] = Field(
        default=(), description="widths of linear layers with ReLU before the classifier; []: a linear classifier"
    )
    dropout: Dropout = Field(default=0.25, description="dropout after each of these layers, in training")


def hidden_layers(feature_dim: int, widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Linear layers, each with ReLU and dropout."""
    layers: list[nn.Module] = []
    for width_in, width in zip((feature_dim, *widths), widths, strict=False):
        layers += [nn.Linear(width_in, width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class _PooledClassifier(nn.Module):
    """The layers that mean and max pooling share.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: PoolingConfig) -> None:
        super().__init__()
        self.hidden = hidden_layers(feature_dim, config.hidden_widths, config.dropout)
        self.classifier = nn.Linear((feature_dim, *config.hidden_widths)[-1], classes)


class MeanPooling(_PooledClassifier):
    """Classifies the mean of the features.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network.
    """

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and an attention of zeros, since all patches count alike.
        """
        mean = features.mean(dim=0, keepdim=True)  # (1, feature_dim)
        return StageOutput(self.classifier(self.hidden(mean)).flatten(), torch.zeros_like(features[:, 0]))


class MaxPooling(_PooledClassifier):
    """Takes the logits of the patch with the highest probability.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes.
        config: sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: PoolingConfig) -> None:
        super().__init__(feature_dim, classes, config)
        self.first_finding = 1 if classes == 2 else 0

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and the logarithm of the class probabilities of each patch as attention (classes, patches).
        """
        logits = self.classifier(self.hidden(features))  # (n, classes)
        attention = torch.log_softmax(logits, dim=1)
        highest = attention[:, self.first_finding :].amax(dim=1)  # (n,)
        chosen = torch.argmax(highest, dim=0, keepdim=True)  # (1,)
        return StageOutput(logits.index_select(0, chosen).flatten(), attention.mT)
