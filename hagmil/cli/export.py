"""hagmil export: turn a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hagmil.cli import _common as common
from hagmil.cli.inspect import show_quantisation

if TYPE_CHECKING:
    from rich.table import Table

    from hagmil.bundle import Precision
    from hagmil.export.parity.slide_parity import SlideParity
    from hagmil.export.pipeline import ExportReport
    from hagmil.export.tensorrt import EngineOptions, EngineReport

_TENSORRT = "TensorRT engines"
_PARITY = "Parity checks"
_HEAD = "A head that is an ONNX graph"


def export(
    backbone: Annotated[Path, typer.Option("--backbone", help="Backbone folder written by hagmil export-backbone.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder of the bundle.")],
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint or run folder of hagmil train; none with --head.", metavar="CHECKPOINT", show_default=False
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="fp32, fp16, or int8 (backbone in int8, stage models in fp32).")
    ] = "fp32",
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            help="With --precision int8: slides, or feature files of slides that are stored nearby; files, folders or "
            "globs; repeatable.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            help="Patches kept at every stage except the last. Default: the smallest number from which on the verdicts "
            "of the validation slides are those of all patches, or the number of the checkpoint.",
            show_default=False,
        ),
    ] = None,
    intended_use: Annotated[
        str | None,
        typer.Option("--intended-use", help="Intended use, for the manifest and the model card.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    parity: Annotated[
        str,
        typer.Option(
            "--parity",
            help="default, or long to compare stage models on bags of 10,000 and 40,000 patches too.",
            rich_help_panel=_PARITY,
        ),
    ] = "default",
    parity_slides: Annotated[
        list[str] | None,
        typer.Option(
            "--parity-slides",
            help="Slides on which the verdicts must stay the same: files, folders or globs; repeatable.",
            show_default=False,
            rich_help_panel=_PARITY,
        ),
    ] = None,
    parity_phantoms: Annotated[
        int | None,
        typer.Option(
            "--parity-phantoms",
            min=0,
            help="Number of synthetic slides on which the verdicts must stay the same. Default: 4 with fp16 without "
            "--parity-slides, otherwise 0; int8 compares verdicts on its calibration slides.",
            show_default=False,
            rich_help_panel=_PARITY,
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            "--head",
            help="In place of CHECKPOINT: a graph with the tensors of a head; it is not changed.",
            show_default=False,
            rich_help_panel=_HEAD,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            help="With --head: names of the classes in the order of the logits: a,b,c.",
            show_default=False,
            rich_help_panel=_HEAD,
        ),
    ] = None,
    spacing_um: Annotated[
        float | None,
        typer.Option(
            "--spacing-um",
            help="With --head: micrometres per pixel of its patches.",
            show_default=False,
            rich_help_panel=_HEAD,
        ),
    ] = None,
    patch_px: Annotated[
        int | None,
        typer.Option(
            "--patch-px",
            min=8,
            help="With --head: side of a patch in pixels.",
            show_default=False,
            rich_help_panel=_HEAD,
        ),
    ] = None,
    trt: Annotated[
        bool, typer.Option("--trt", help="Build TensorRT engines for every graph.", rich_help_panel=_TENSORRT)
    ] = False,
    trt_flavour: common.TrtFlavour = None,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            help="Compute capability of the GPU that will run the engines, such as 8.9; repeatable.",
            show_default=False,
            rich_help_panel=_TENSORRT,
        ),
    ] = None,
    trt_batch: Annotated[
        str | None,
        typer.Option(
            "--trt-batch",
            help="Batch sizes of the backbone: min,opt,max. Default: 1,64,256.",
            show_default=False,
            rich_help_panel=_TENSORRT,
        ),
    ] = None,
    trt_patches: Annotated[
        list[str] | None,
        typer.Option(
            "--trt-patches",
            help="Bag sizes of the stage models in patches: min,opt,max; repeatable, one profile each. Default: from "
            "the manifest.",
            show_default=False,
            rich_help_panel=_TENSORRT,
        ),
    ] = None,
    trt_workspace_gib: Annotated[
        float | None,
        typer.Option(
            "--trt-workspace-gib",
            min=0.01,
            help="Maximum GPU memory of one operation, in GiB.",
            show_default=False,
            rich_help_panel=_TENSORRT,
        ),
    ] = None,
    trt_hardware_compatibility: Annotated[
        str,
        typer.Option(
            "--trt-hardware-compatibility",
            help="GPUs that can load the engines: none (only the GPU model they are built on), ampere_plus or "
            "same_compute_capability.",
            rich_help_panel=_TENSORRT,
        ),
    ] = "none",
    trt_version_compatible: Annotated[
        bool,
        typer.Option(
            "--trt-version-compatible",
            help="Make engines that later TensorRT releases of the same major version can load.",
            rich_help_panel=_TENSORRT,
        ),
    ] = False,
    trt_timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--trt-timing-cache",
            help="File that stores timings between builds. Default: in the user's cache folder.",
            show_default=False,
            rich_help_panel=_TENSORRT,
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into a bundle: ONNX models, manifest, digests and self-test.

    Compares the outputs of every ONNX model with PyTorch; with fp16 and int8 also the verdicts on slides. int8
    quantises the backbone and runs on CPUs. TensorRT-RTX builds engines without a GPU.
    """
    from hagmil._tensorrt.profiles import parse_range
    from hagmil.errors import UsageError
    from hagmil.export.parity.stages import parse_parity_form
    from hagmil.export.pipeline import export_bundle
    from hagmil.export.stage_half_precision import parse_precision
    from hagmil.export.tensorrt import EngineOptions, add_engines, engine_target, parse_hardware_compatibility
    from hagmil.workflows.calibration_patches import SlidePatches, calibration_slides
    from hagmil.workflows.slide_runner import default_phantoms, open_slide_runner

    options = EngineOptions(
        flavour=trt_flavour,
        capabilities=tuple(compute_capability or ()),
        batch=parse_range("--trt-batch", trt_batch) if trt_batch else None,
        patches=tuple(parse_range("--trt-patches", text) for text in trt_patches or ()),
        workspace_bytes=None if trt_workspace_gib is None else round(trt_workspace_gib * 2**30),
        hardware_compatibility=parse_hardware_compatibility(trt_hardware_compatibility),
        version_compatible=trt_version_compatible,
        timing_cache=trt_timing_cache,
    )
    _check_engine_options(options, trt=trt)
    if head is not None:
        if checkpoint is not None or trt or precision != "fp32" or parity_slides or parity_phantoms or calibration:
            raise UsageError(
                "--head makes an fp32 bundle without a source; remove CHECKPOINT and options of parity and trt"
            )
        _export_head(head, backbone, out, classes, spacing_um, patch_px, intended_use, overwrite=overwrite)
        return
    if checkpoint is None:
        raise UsageError("pass a checkpoint, or --head with an ONNX graph")
    if classes is not None or spacing_um is not None or patch_px is not None:
        raise UsageError("--classes, --spacing-um and --patch-px need --head; a checkpoint contains them")
    _check_int8(parse_precision(precision), calibration, parity_slides, parity_phantoms, trt=trt)
    if trt:
        engine_target(options)  # raises before the long export if something is missing
    phantoms = default_phantoms(precision, parity_slides) if parity_phantoms is None else parity_phantoms
    own = calibration_slides(calibration) if calibration else ()
    with common.StepProgress() as progress:
        requests = [slide.request for slide in own]
        with open_slide_runner(parity_slides or [], phantoms, progress=progress, calibration=requests) as slides:
            report = export_bundle(
                checkpoint,
                backbone,
                out,
                precision=parse_precision(precision),
                keep=keep,
                parity_form=parse_parity_form(parity),
                slides=slides,
                calibration=SlidePatches(own, progress) if own else None,
                intended_use=intended_use,
                overwrite=overwrite,
                progress=progress,
            )
        engines = add_engines(out, options, progress=progress).engines if trt else ()
    _show(report, engines)
    common.stdout().print(f"bundle: {out}", markup=False, highlight=False)


def _export_head(
    head: Path,
    backbone: Path,
    out: Path,
    classes: str | None,
    spacing_um: float | None,
    patch_px: int | None,
    intended_use: str | None,
    *,
    overwrite: bool,
) -> None:
    """Make a bundle from an ONNX head."""
    from hagmil.errors import UsageError
    from hagmil.export.onnx_head import OnnxHeadOptions, export_onnx_head

    if classes is None or spacing_um is None or patch_px is None:
        raise UsageError("--head needs --classes, --spacing-um and --patch-px, which a graph does not contain")
    names = tuple(name.strip() for name in classes.split(","))
    options = OnnxHeadOptions(names, spacing_um, patch_px, intended_use)
    export_onnx_head(head, backbone, out, options, overwrite=overwrite)
    common.stdout().print(f"bundle: {out}", markup=False, highlight=False)


def _check_engine_options(options: EngineOptions, *, trt: bool) -> None:
    """Raise an error if options of engines are given without ``--trt``."""
    from hagmil.errors import UsageError
    from hagmil.export.tensorrt import EngineOptions

    if not trt and options != EngineOptions():
        raise UsageError("options for TensorRT engines were given; add --trt to build engines")


def _check_int8(
    precision: Precision,
    calibration: list[str] | None,
    parity_slides: list[str] | None,
    parity_phantoms: int | None,
    *,
    trt: bool,
) -> None:
    """Raise an error if the options do not fit ``--precision int8``."""
    from hagmil.errors import UsageError

    if precision != "int8":
        if calibration:
            raise UsageError("--calibration needs --precision int8")
        return
    if trt:
        raise UsageError(
            "--precision int8 is for CPUs; TensorRT needs symmetric quantisation without quantised biases: use "
            "--precision fp16 with --trt"
        )
    if not calibration:
        raise UsageError(
            "--precision int8 needs --calibration: slides like those that the model will process, or their features"
        )
    if parity_phantoms == 0 and not parity_slides:
        raise UsageError("--precision int8 requires slides to compare verdicts on; remove --parity-phantoms 0")


def _show(report: ExportReport, engines: tuple[EngineReport, ...]) -> None:
    """Print the parity results, the engines and the time of each step."""
    console = common.stdout()
    console.print(_parity_table(report))
    if report.parity.quantization is not None:
        show_quantisation(console, report.parity.quantization)
    if report.parity.slides is not None:
        console.print(_slide_table(report.parity.slides))
    if engines:
        table = common.table("engine", "precision", "GPUs", "layers", "MB", "GPU memory, MB", "seconds")
        for engine in engines:
            entry = engine.entry
            gpus = ", ".join(entry.capabilities)
            size, memory = common.megabytes(engine.file.bytes), common.megabytes(entry.memory_bytes)
            table.add_row(entry.file, entry.precision, gpus, f"{engine.layers}", size, memory, f"{engine.seconds:.1f}")
        console.print(table)
    if report.keep_reason:
        console.print(report.keep_reason, highlight=False)
    console.print("seconds: " + ", ".join(f"{step} {seconds:.1f}" for step, seconds in report.seconds.items()))


def _parity_table(report: ExportReport) -> Table:
    from hagmil.export.parity.compare import worst_by_tensor

    table = common.table("graph", "tensor", "comparisons", "worst error", "allowed")
    for row, comparisons in worst_by_tensor(report.parity.rows):
        table.add_row(row.model, row.tensor, f"{comparisons}", f"{row.error:.1e}", f"{row.allowed:.1e}")
    return table


def _slide_table(slides: SlideParity) -> Table:
    from hagmil.export.model_card import percent

    title = f"{slides.what}: {slides.equal_verdicts} of {slides.with_verdict} verdicts are equal"
    table = common.table("stage", "same kept patches", "on the worst slide", "lowest rank correlation", title=title)
    for stage in slides.stages:
        ranks = "" if stage.least_correlation is None else f"{stage.least_correlation:.6f}"
        table.add_row(stage.name, percent(stage.kept_alike), percent(stage.least_alike), ranks)
    return table
