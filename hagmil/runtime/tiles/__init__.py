"""Encoded tiles: TIFF tags, JPEG tiles, a shared cache, and the kernels that decode tiles into batches."""
