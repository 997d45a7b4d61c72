"""The source `tfds:NAME`: TensorFlow Datasets without TensorFlow."""
