"""DSMIL (Li et al., CVPR 2021): an instance stream and a bag stream, whose attention compares with the critical patch.

For a bag of n rows:

1. Optional linear layers over the features.
2. Instance stream: a linear classifier of each row. The critical patch of a class is the one with the highest logit.
3. Queries and values of all rows; the attention of a class is the dot product of each query with that of its critical
   patch, divided by the root of the width; softmax over rows.
4. Bag stream: the weighted sum of the values for each class; a bias and the products with one matrix of all classes and
   features for each class give the logits.

The classes of DSMIL are sigmoids: each may be present or absent. With one class, or where a bag may have none, the
first class of the verdict is the negative one (``negative_class``), whose logit is 0: with two classes, the softmax of
the logits is then the sigmoid.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from hagmil._models import FrozenModel
from hagmil.trainer.models.iat import StageOutput
from hagmil.trainer.models.pooling import hidden_layers


class DsmilConfig(FrozenModel):
    """Form and sizes of DSMIL; the defaults are those of the published code."""

    hidden_widths: tuple[int, ...] = Field(default=(), description="widths of linear layers before both streams")
    negative_class: bool = Field(
        default=False, description="true: the first class means that no other is present, and has the logit 0"
    )
    bag_layer: bool = Field(default=False, description="true: a linear layer with ReLU before queries and values")
    query: Literal["mlp", "linear", "tanh"] = Field(
        default="mlp", description="queries; mlp: two linear layers, linear: one, tanh: one with tanh"
    )
    query_width: int = Field(default=128, ge=1, description="width of a query")
    value: Literal["identity", "linear", "relu"] = Field(
        default="identity", description="values; identity: the features, linear: a linear layer, relu: one with ReLU"
    )
    bag_norm: bool = Field(default=False, description="true: LayerNorm over the embedding of each class")
    logits: Literal["bag", "mean"] = Field(
        default="bag", description="verdict; bag: of the bag stream, mean: mean of both streams"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout after layers and before values, in training")


class DsmilOutput(NamedTuple):
    """What DSMIL gives for a bag, for its loss; for the classes without the negative one.

    Args:
        logits: float (classes,), the verdict, with the negative class.
        attention: float (classes, patches), with the negative class.
        bag_logits: float (present,).
        max_logits: float (present,), the highest instance logit of each class.
        instance_logits: float (patches, present).
        scores: float (present, patches), attention before the softmax.
    """

    logits: Tensor
    attention: Tensor
    bag_logits: Tensor
    max_logits: Tensor
    instance_logits: Tensor
    scores: Tensor


class Dsmil(nn.Module):
    """DSMIL.

    Args:
        feature_dim: length of a feature vector.
        classes: number of classes of the verdict.
        config: form and sizes of the network.
    """

    def __init__(self, feature_dim: int, classes: int, config: DsmilConfig) -> None:
        super().__init__()
        self.config = config
        present = classes - config.negative_class
        width = (feature_dim, *config.hidden_widths)[-1]
        self.hidden = hidden_layers(feature_dim, config.hidden_widths, config.dropout)
        self.instance_classifier = nn.Linear(width, present)
        self.bag_layer = nn.Sequential(nn.Linear(width, width), nn.ReLU()) if config.bag_layer else nn.Identity()
        query: list[nn.Module] = [nn.Linear(width, config.query_width)]
        if config.query == "mlp":
            query += [nn.ReLU(), nn.Linear(config.query_width, config.query_width)]
        if config.query != "linear":
            query.append(nn.Tanh())
        self.query = nn.Sequential(*query)
        value: list[nn.Module] = []
        if config.value != "identity":
            value += [nn.Dropout(config.dropout), nn.Linear(width, width)]
        if config.value == "relu":
            value.append(nn.ReLU())
        self.value = nn.Sequential(*value)
        self.bag_norm = nn.LayerNorm(width) if config.bag_norm else nn.Identity()
        self.classifier = nn.Linear(present * width, present)

    def forward(self, features: Tensor) -> StageOutput:
        """Classify a bag.

        Args:
            features: float32 (patches, feature_dim), at least one patch.

        Returns:
            Logits, and the attention of each class before the softmax; that of the negative class is their mean.
        """
        output = self.forward_training(features)
        return StageOutput(output.logits, output.attention)

    def forward_training(self, features: Tensor) -> DsmilOutput:
        """Classify a bag as ``forward`` does, and return both streams too."""
        rows = self.hidden(features)  # step 1: (n, width)
        instance_logits = self.instance_classifier(rows)  # step 2: (n, present)
        critical = torch.argmax(instance_logits, dim=0)  # (present,)
        rows = self.bag_layer(rows)
        queries = self.query(rows)  # step 3: (n, query width)
        scores = torch.mm(queries.index_select(0, critical), queries.mT) * self.config.query_width**-0.5  # (present, n)
        embedding = self.bag_norm(torch.mm(torch.softmax(scores, dim=1), self.value(rows)))  # (present, width)
        bag_logits = self.classifier(embedding.reshape(1, -1)).flatten()  # step 4: (present,)
        max_logits = instance_logits.amax(dim=0)
        logits = bag_logits if self.config.logits == "bag" else (bag_logits + max_logits) / 2
        attention = scores
        if self.config.negative_class:
            logits = torch.cat([torch.zeros_like(logits[:1]), logits])
            attention = torch.cat([scores.mean(dim=0, keepdim=True), scores])
        return DsmilOutput(logits, attention, bag_logits, max_logits, instance_logits, scores)
