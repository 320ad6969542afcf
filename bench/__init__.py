"""Benchmarks: each file runs one comparison against a peer and writes out/bench/<name>.json."""
