"""Remedies for errors of TensorRT, found by phrases in its messages."""

from __future__ import annotations

_REMEDIES: tuple[tuple[str, str], ...] = (
    ("FP32 GEMM is not supported", "compute capability 7.5 supports only fp16 graphs: export with --precision fp16"),
    ("for Turing (SM75)", "remove --compute-capability 7.5, or export with --precision fp16"),
    ("within workspace limit", "increase --trt-workspace-gib"),
    (
        "at least 2 dimensions are required",
        "TensorRT does not support this operator on one axis; keep two axes",
    ),
    ("UNSUPPORTED_NODE", "TensorRT does not support this operator or this form of it; use --provider cuda"),
    ("out of memory", "free GPU memory, or build for smaller batches and bags: --trt-batch, --trt-patches"),
    ("OutOfMemory", "free GPU memory, or build for smaller batches and bags: --trt-batch, --trt-patches"),
    ("CUDA driver version is insufficient", "this step needs an NVIDIA GPU and its driver"),
)


def remedy_for(text: str) -> str | None:
    """Return the remedy for an error message; None if none is known."""
    return next((remedy for phrase, remedy in _REMEDIES if phrase in text), None)


def with_remedy(text: str) -> str:
    """Return an error message in one line, followed by its remedy if one is known."""
    line = " ".join(text.split())
    remedy = remedy_for(line)
    return f"{line}; {remedy}" if remedy else line
