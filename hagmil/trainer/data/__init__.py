"""Labels, splits and feature files, and the cohort that consists of them."""
