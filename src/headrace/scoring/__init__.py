"""Scores away from a request: of a file, of a past interval of the log, of the log as it grows."""
