"""One stage of `model.fit`: the session around it, checkpoints, signals, trackers."""
