"""What to do about what TensorRT says: signs in its messages, and the remedy for each."""

from __future__ import annotations

_REMEDIES: tuple[tuple[str, str], ...] = (
    ("FP32 GEMM is not supported", "compute capability 7.5 takes fp16 graphs alone: export with --precision fp16"),
    ("for Turing (SM75)", "leave out --compute-capability 7.5, or export with --precision fp16"),
    ("within workspace limit", "raise --trt-workspace-gib"),
    ("at least 2 dimensions are required", "TensorRT has no such operation over a single axis: keep two in the model"),
    ("UNSUPPORTED_NODE", "TensorRT has not got this operator, or not in this form; use --provider cuda for this model"),
    ("out of memory", "free GPU memory, or build for smaller batches and bags: --trt-batch, --trt-patches"),
    ("OutOfMemory", "free GPU memory, or build for smaller batches and bags: --trt-batch, --trt-patches"),
    ("CUDA driver version is insufficient", "this step needs an NVIDIA GPU and its driver"),
)


def remedy_for(text: str) -> str | None:
    """What to do about an error of TensorRT's; None where nothing is known."""
    return next((remedy for sign, remedy in _REMEDIES if sign in text), None)


def with_remedy(text: str) -> str:
    """An error of TensorRT's in one line, and what to do about it where that is known."""
    line = " ".join(text.split())
    remedy = remedy_for(line)
    return f"{line}; {remedy}" if remedy else line
