"""NVIDIA's software as hagmil needs it: the driver with its GPUs, and CUDA's libraries from installed packages."""
