"""Window features for a past interval: the kernel in this process, or on Spark over the log."""
