"""A bundle with open sessions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hagmil.bundle import Bundle, check_bundle, file_states, open_bundle
from hagmil.errors import BundleError, UsageError
from hagmil.runtime.inference.contract import CheckedSession, graph_contracts
from hagmil.runtime.memory.heap import trim_heap
from hagmil.runtime.sessions import Session, open_session
from hagmil.spec import PATCHES


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A bundle whose graphs are loaded. It may be used for many slides and from several threads at once.

    Args:
        bundle: the bundle.
        backbone: session of the patch encoder.
        stages: session of each stage model, coarse to fine.
    """

    bundle: Bundle
    backbone: Session
    stages: tuple[Session, ...]


def load_model(
    path: str | Path | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    rebuild: bool = False,
    trt_flavour: str | None = None,
) -> LoadedModel:
    """Open a bundle, check its files, load its graphs, and check that their tensors follow the contract.

    Args:
        path: the bundle's folder; None opens the built-in demonstration model.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: threads of one run on the CPU; None uses all cores.
        rebuild: build TensorRT engines for this machine if the bundle's do not fit (provider ``tensorrt``).
        trt_flavour: ``tensorrt`` or ``tensorrt-rtx``; None uses the installed one (provider ``tensorrt``).

    Returns:
        The model, for any number of calls from any number of threads.

    Raises:
        UsageError: no such provider or flavour.
        BundleError: a file was altered, the manifest is invalid, or a graph cannot be loaded or does not follow the
            contract.
        EnvironmentLacks: the provider is missing on this machine.
    """
    bundle = open_bundle(builtin_bundle() if path is None else Path(path), verify=False)
    before = file_states(bundle)
    check_bundle(bundle)
    manifest = bundle.manifest
    if provider == "tensorrt":
        if manifest.precision == "int8":
            raise UsageError(f'bundle "{bundle.path}" is quantised for CPUs; TensorRT needs a bundle in fp32 or fp16')
        from hagmil.runtime.sessions.engines import open_tensorrt  # imports TensorRT

        open_graph = open_tensorrt(bundle, rebuild=rebuild, flavour=trt_flavour)
    else:
        open_graph = partial(_open_graph, bundle, provider, threads)
    sessions = [CheckedSession(open_graph(contract.graph), contract) for contract in graph_contracts(manifest)]
    backbone, *stages = sessions
    _check_patch_size(bundle, backbone)
    if file_states(bundle) != before:
        raise BundleError(
            f'bundle "{bundle.path}": files were changed while it was loaded; load it again when they are complete',
            code="digest_mismatch",
        )
    trim_heap()
    return LoadedModel(bundle=bundle, backbone=backbone, stages=tuple(stages))


def _open_graph(bundle: Bundle, provider: str, threads: int | None, graph: str) -> Session:
    many_runs = graph == bundle.manifest.backbone.onnx
    return open_session(bundle.file(graph), provider=provider, threads=threads, many_runs=many_runs)


def builtin_bundle() -> Path:
    """The folder of the built-in demonstration model, which was trained on phantoms only."""
    return Path(__file__).resolve().parents[2] / "demo_bundle"


def _check_patch_size(bundle: Bundle, backbone: Session) -> None:
    shape = backbone.input_shapes.get(PATCHES.name)
    if shape is None or len(shape) != len(PATCHES.axes):
        raise BundleError(
            f'bundle "{bundle.path}": its backbone has no input {PATCHES.name} with four axes', code="contract"
        )
    patch_px = bundle.manifest.patch_px
    if any(isinstance(side, int) and side != patch_px for side in shape[1:3]):
        raise BundleError(
            f'bundle "{bundle.path}": patches are {patch_px} pixels wide but its backbone takes {shape[1:3]}',
            code="contract",
        )
