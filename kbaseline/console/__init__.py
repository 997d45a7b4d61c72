"""Console output: formatted numbers and tables, progress bars, the epoch table."""
