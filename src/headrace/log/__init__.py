"""The append-only logs of a line."""
