"""Files on disk that appear whole: the run folder, arrays."""
