"""XLA's settings and memory, several devices and processes, predicting batches, and the largest batch that fits."""
