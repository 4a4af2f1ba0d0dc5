"""Labels, splits, feature files and the cohort that they make up."""
