"""The cascade on feature files: outputs with any number of kept patches, and the numbers with which verdicts hold."""
