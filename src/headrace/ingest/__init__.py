"""From the log to features and samples: collector, ticks, checkpoints."""
