"""A real event file through kernel, samples and trainer, by policy."""
