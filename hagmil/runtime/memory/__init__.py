"""Process memory: pooled buffers and settings of malloc."""
