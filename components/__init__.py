"""Kubeflow components: one file each, a thin body that calls one flow of `headrace`.

No `from __future__ import annotations` below this folder: kfp reads the signatures.
"""

IMAGE = "ghcr.io/headrace/headrace-python:0.1.0"
"""Image of every component; its name contains "python", or kfp's local runner warns."""
