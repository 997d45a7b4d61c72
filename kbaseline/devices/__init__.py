"""XLA settings, several devices, several processes, and the largest batch that fits into memory."""
