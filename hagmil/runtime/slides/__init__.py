"""One whole-slide image file: opening, levels, spacing, regions and the low-resolution overview."""
