"""The base class of the pydantic models that describe files and configuration."""

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A model that cannot be changed after construction and that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
