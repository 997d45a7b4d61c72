"""Files on disk: the run folder, with atomic writes, and safe reading of NumPy arrays."""
