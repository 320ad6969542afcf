"""Event files of a line as one log: any CSV, TSV, JSON lines or Parquet that its YAML describes.

DuckDB reads the files and evaluates the YAML's SQL expressions; its access to files is
switched off before it sees the first of them. Only this package imports duckdb.
"""

from headrace.source.counts import SourceCounts
from headrace.source.read import read_events

__all__ = ["SourceCounts", "read_events"]
