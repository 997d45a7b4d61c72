"""What the machine offers: XLA flags and memory, several devices, several processes, the batch that fits."""
