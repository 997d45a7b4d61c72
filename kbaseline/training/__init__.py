"""Training of one stage by `model.fit`: session, checkpoints, signals, trackers."""
