"""The tensors that the graphs of a bundle must have: declared ones when a bundle is opened, real ones in every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hagmil.bundle import Manifest
from hagmil.errors import BundleError
from hagmil.runtime.sessions import Session
from hagmil.runtime.sessions.onnx import OnnxSession, TensorInfo
from hagmil.spec import (
    BACKBONE_INPUTS,
    BACKBONE_OUTPUTS,
    DYNAMIC_AXES,
    STAGE_INPUTS,
    TensorSpec,
    stage_outputs,
)

_SIDES = ("height", "width")  # a backbone may fix them at the bundle's patch size


class _Array(Protocol):
    """An array on the host or on a device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class GraphContract:
    """The tensors of one graph.

    Args:
        graph: file name of the graph, for messages.
        inputs: the inputs of the contract.
        outputs: the outputs of the contract.
        lengths: lengths of the axes that the manifest fixes.
    """

    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lengths: Mapping[str, int]

    def declared_problems(self, inputs: Mapping[str, TensorInfo], outputs: Mapping[str, TensorInfo]) -> Iterator[str]:
        """Differences between the tensors that a graph declares and the contract."""
        yield from self._tensor_problems("input", inputs, self.inputs)
        yield from self._tensor_problems("output", outputs, self.outputs)

    def check_outputs(self, inputs: Mapping[str, _Array], outputs: Mapping[str, _Array]) -> None:
        """Check types and shapes of the outputs of a run.

        Args:
            inputs: the inputs of the run.
            outputs: its outputs.

        Raises:
            BundleError: an output has another type or shape than the contract says for these inputs.
        """
        lengths = dict(self.lengths)
        for spec in self.inputs:
            for axis, length in zip(spec.axes, inputs[spec.name].shape, strict=True):
                lengths.setdefault(str(axis), length)
        for spec in self.outputs:
            wanted = tuple(lengths[str(axis)] for axis in spec.axes)
            found = outputs[spec.name]
            if tuple(found.shape) != wanted or found.dtype != np.dtype(spec.dtype):
                raise BundleError(
                    f"{self.graph} gave {spec.name} as {found.dtype} {tuple(found.shape)}, not {spec.dtype} {wanted}; "
                    "export the model again",
                    code="contract",
                )

    def _tensor_problems(
        self, kind: str, declared: Mapping[str, TensorInfo], specs: tuple[TensorSpec, ...]
    ) -> Iterator[str]:
        if list(declared) != [spec.name for spec in specs]:
            yield f"{kind}s {', '.join(declared)}, not {', '.join(spec.name for spec in specs)}"
            return
        for spec in specs:
            found = declared[spec.name]
            problem = spec.mismatch(found.dtype, self._with_contract_names(spec, found))
            if problem is not None:
                yield f"{kind} {spec.name} {problem}"
                continue
            for name, axis in zip(spec.axes, found.axes, strict=True):
                if isinstance(axis, int) and axis != self.lengths.get(str(name), axis):
                    yield f"{kind} {spec.name} has {axis} {name}, the manifest says {self.lengths[str(name)]}"

    def _with_contract_names(self, spec: TensorSpec, found: TensorInfo) -> tuple[str | int | None, ...]:
        """A graph's axes, with the contract's name for each dynamic axis.

        The sides of a patch count as dynamic if the graph fixes them at the bundle's patch size.
        """
        if len(found.axes) != len(spec.axes):
            return found.axes
        return tuple(
            name
            if name in DYNAMIC_AXES
            and (not isinstance(given, int) or (name in _SIDES and given == self.lengths.get(str(name), given)))
            else given
            for name, given in zip(spec.axes, found.axes, strict=True)
        )


def backbone_contract(graph: str, features: int, patch_px: int | None) -> GraphContract:
    """The tensors of a backbone.

    Args:
        graph: file name of the graph.
        features: length of the feature vector.
        patch_px: side of a patch in pixels; None if it is not fixed.
    """
    sides = {} if patch_px is None else dict.fromkeys(_SIDES, patch_px)
    return GraphContract(graph, BACKBONE_INPUTS, BACKBONE_OUTPUTS, {"dim": features, **sides})


def graph_contracts(manifest: Manifest) -> tuple[GraphContract, ...]:
    """The tensors of the backbone and of each stage model, coarse to fine."""
    backbone = backbone_contract(manifest.backbone.onnx, manifest.backbone.features, manifest.patch_px)
    outputs = stage_outputs(manifest.kind, manifest.readout, manifest.attention)
    stages = (
        GraphContract(stage.onnx, STAGE_INPUTS, outputs, _stage_lengths(manifest, index))
        for index, stage in enumerate(manifest.stages)
    )
    return (backbone, *stages)


def _stage_lengths(manifest: Manifest, index: int) -> dict[str, int]:
    """Length of each axis that the manifest fixes, for one stage."""
    hierarchy, last = manifest.hierarchy, index == len(manifest.stages) - 1
    lengths = {"dim": manifest.backbone.features, "classes": len(manifest.classes)}
    if hierarchy is not None:
        lengths |= {"coarse": len(hierarchy.coarse), "fine": len(hierarchy.fine)}
        lengths["classes"] = len(hierarchy.fine if last else hierarchy.coarse)
    return lengths


class CheckedSession:
    """A session whose tensors follow the contract; see :class:`hagmil.runtime.sessions.Session`.

    Args:
        session: the session. If it is one of ONNX Runtime, its declared tensors are checked.
        contract: the tensors of its graph.

    Raises:
        BundleError: the declared tensors differ from the contract.
    """

    def __init__(self, session: Session, contract: GraphContract) -> None:
        if isinstance(session, OnnxSession):
            problems = "; ".join(contract.declared_problems(*session.tensors()))
            if problems:
                raise BundleError(
                    f"{contract.graph} does not follow the contract: {problems}; export the model again",
                    code="contract",
                )
        self._session = session
        self._contract = contract

    @property
    def provider(self) -> str:
        """The provider that runs the graph, as its library names it."""
        return self._session.provider

    @property
    def input_shapes(self) -> dict[str, tuple[str | int, ...]]:
        """The shape of every input; a dynamic axis is given by its name."""
        return self._session.input_shapes

    @property
    def on_device(self) -> bool:
        """Whether the session takes cupy arrays without a copy."""
        return self._session.on_device

    def run(self, inputs: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """Run the graph once and check types and shapes of the outputs.

        Args:
            inputs: an array for every input, by its name.
            last: whether no run follows soon.

        Returns:
            An array for every output, by its name.

        Raises:
            EnvironmentLacks: not enough memory on the device.
            BundleError: the graph cannot run on these inputs, or an output has another type or shape than the contract.
        """
        outputs = self._session.run(inputs, last=last)
        self._contract.check_outputs(inputs, outputs)
        return outputs
