"""Headrace keeps click and conversion models fresh."""
