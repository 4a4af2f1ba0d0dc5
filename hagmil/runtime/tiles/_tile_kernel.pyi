import numpy as np
from numpy.typing import NDArray

def open_library(path: str, /) -> None: ...
def start_patches(
    level: tuple[int, int],
    tile: tuple[int, int],
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    /,
) -> dict[int, int]: ...
def reduce_pixels(pixels: NDArray[np.uint8], factor: int, means: NDArray[np.uint8], /) -> None: ...
def resample_pixels(
    pixels: NDArray[np.uint8],
    columns: NDArray[np.int32],
    column_weights: NDArray[np.int32],
    rows: NDArray[np.int32],
    row_weights: NDArray[np.int32],
    out: NDArray[np.uint8],
    /,
) -> None: ...
def read_tiles(
    descriptor: int,
    head: bytes,
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    level: tuple[int, int],
    tile: tuple[int, int],
    indices: list[int],
    buffers: list[NDArray[np.uint8] | None],
    decoded: int,
    corners: NDArray[np.int64],
    shrink: int,
    patches: NDArray[np.uint8],
    scratch: NDArray[np.uint8],
    bypass_cache: bool,
    /,
) -> None: ...
