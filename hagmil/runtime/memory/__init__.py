"""Process memory: pooled buffers and the settings of malloc."""
