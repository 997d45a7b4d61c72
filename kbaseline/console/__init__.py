"""Console output: numbers and tables as text, progress bars, the table of epochs."""
