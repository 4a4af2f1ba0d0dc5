"""Configuration of a training: loading, sections and recipes."""
