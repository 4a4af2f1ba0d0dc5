"""Tissue masks: segmentation, areas of a mask, and the kernels that compute them."""
