"""hagmil inspect: describe a bundle or an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common

if TYPE_CHECKING:
    from rich.console import Console

    from hagmil.bundle import Certainty, Quantization, Tested
    from hagmil.export.inspect_graph import BundleView, GraphView
    from hagmil.export.parity.compare import ParityReport


def inspect(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Bundle folder or .onnx file. Default: the built-in demonstration model.",
            metavar="[BUNDLE_OR_ONNX]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show stages, spacings, classes, sizes, nodes, precision, parity, engines and provenance.

    Does not check digests; see hagmil verify.
    """
    from hagmil.export.inspect_graph import BundleView, inspect_path
    from hagmil.runtime.inference.loaded_bundle import builtin_bundle

    console = common.stdout()
    view = inspect_path(path or builtin_bundle())
    if isinstance(view, BundleView):
        _show_bundle(console, view)
    else:
        _show_graphs(console, (view,))
        for name in (*view.inputs, *view.outputs):
            console.print(name, markup=False, highlight=False)
        console.print(", ".join(f"{operator} {count}" for operator, count in view.operators), highlight=False)


def _show_bundle(console: Console, view: BundleView) -> None:
    manifest = view.bundle.manifest
    origin = manifest.provenance
    facts = common.table("bundle", str(view.bundle.path))
    for name, value in (
        ("sha256", view.bundle.sha256),
        ("kind", manifest.kind),
        ("classes", ", ".join(manifest.classes)),
        ("coarse classes", ", ".join(manifest.hierarchy.coarse) if manifest.hierarchy else "none"),
        ("backbone", f"{manifest.backbone.name}, {manifest.backbone.features} features"),
        ("patch", f"{manifest.patch_px} px"),
        ("precision", manifest.precision),
        ("temperature", "not calibrated" if manifest.temperature is None else f"{manifest.temperature:.4f}"),
        ("tested", _tested(manifest.tested)),
        ("sure verdicts", _certainty(manifest.certainty)),
        ("intended use", manifest.intended_use),
        ("made", f"{origin.created:%Y-%m-%d} by hagmil {origin.hagmil}"),
        ("weights", f"checkpoint {origin.checkpoint_sha256[:12]}...; backbone: {origin.backbone_weights}"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    stages = common.table("stage", "um/px", "kept patches")
    for stage in manifest.stages:
        keeps = "gives the verdict" if stage.keep is None else f"{stage.keep}"
        stages.add_row(stage.name, f"{stage.spacing_um:g}", keeps)
    console.print(stages)
    _show_graphs(console, view.graphs)
    if manifest.quantization is not None:
        show_quantisation(console, manifest.quantization)
    _show_parity(console, view.parity)
    _show_engines(console, view)


def _tested(tested: Tested | None) -> str:
    if tested is None:
        return "not tested with several numbers of kept patches"
    held = (
        "with no tested number of kept patches"
        if tested.held_from is None
        else f"from {tested.held_from} kept patches on"
    )
    return (
        f"verdicts are those of all patches {held}, on {tested.slides} slides ({tested.part}) of "
        f"{tested.smallest_bag:,} to {tested.largest_bag:,} coarse patches"
    )


def _certainty(certainty: Certainty | None) -> str:
    if certainty is None:
        return "not calibrated"
    how = "heuristic" if certainty.method == "quantile" else f"risk {certainty.level:g}"
    return (
        f"above a margin of {certainty.threshold:.4g} ({how}), from {certainty.slides} slides of "
        f"{certainty.smallest_bag:,} to {certainty.largest_bag:,} coarse patches"
    )


def _show_graphs(console: Console, graphs: tuple[GraphView, ...]) -> None:
    table = common.table("graph", "MB", "opset", "nodes", "weights")
    for graph in graphs:
        opset, nodes = ("?" if value is None else f"{value}" for value in (graph.opset, graph.nodes))
        table.add_row(graph.name, common.megabytes(graph.bytes), opset, nodes, graph.weights or "?")
    console.print(table)
    if any(graph.nodes is None for graph in graphs):
        console.print('?: needs the onnx package; run: pip install "hagmil[export]"', markup=False)


def show_quantisation(console: Console, of: Quantization) -> None:
    """Print how a backbone was quantised, with its accuracy and speed."""
    speed = of.throughput
    table = common.table("backbone in int8", of.scheme)
    for name, value in (
        ("first product", of.first_product),
        ("calibrated on", f"{of.calibration_patches} patches of {of.calibration}"),
        (
            "smallest cosine",
            f"{of.least_cosine:.4f} over {of.compared_patches} patches, at least {of.allowed_cosine:g} required",
        ),
        ("relative error", f"{of.relative_error:.2%}, {of.allowed_relative_error:.0%} allowed"),
        ("verdicts", f"{of.equal_verdicts} of {of.verdicts} the same on {of.compared_slides}"),
        (
            "same kept patches",
            ", ".join(f"{stage} {share:.2%}" for stage, share in of.kept_alike.items()) or "no stage keeps patches",
        ),
        ("patches/s", f"{speed.int8_patches_per_s:.1f}, in fp32 {speed.fp32_patches_per_s:.1f} ({speed.gain:.2f} x)"),
        ("measured on", f"{speed.processor}, threads: {speed.threads}, batch {speed.batch}"),
    ):
        table.add_row(name, value)
    console.print(table)


def _show_parity(console: Console, parity: ParityReport | None) -> None:
    from hagmil.export.parity.compare import worst_by_tensor

    if parity is None:
        console.print("parity: the bundle has no parity report")
        return
    table = common.table("parity of", "tensor", "comparisons", "error", "allowed")
    for row, comparisons in worst_by_tensor(parity.rows):
        error = "not finite" if row.error is None else f"{row.error:.1e}"
        table.add_row(row.model, row.tensor, f"{comparisons}", error, f"{row.allowed:.1e}")
    console.print(table)
    if parity.slides is not None:
        slides = parity.slides
        console.print(f"verdicts: {slides.equal_verdicts} of {slides.with_verdict} the same on {slides.what}")


def _show_engines(console: Console, view: BundleView) -> None:
    engines = view.bundle.manifest.engines
    if not engines:
        console.print("engines: none")
        return
    table = common.table(
        "engine of", "flavour", "compute capability", "precision", "MB", "GPU memory, MB", "largest shapes"
    )
    for engine in engines:
        shapes = "; ".join("x".join(map(str, one.maximum)) for profile in engine.profiles for one in profile.values())
        table.add_row(
            engine.graph,
            f"{engine.flavour} {engine.flavour_version}",
            ", ".join(engine.capabilities),
            engine.precision,
            common.megabytes(view.bundle.manifest.files[engine.file].bytes),
            common.megabytes(engine.memory_bytes),
            shapes,
        )
    console.print(table)
