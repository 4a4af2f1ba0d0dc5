"""Classification metrics, bootstrap intervals and temperature scaling; no torch, no files."""
