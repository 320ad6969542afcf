"""Kubeflow pipelines; `compiled/` holds their YAML, which is what runs, here and on a cluster."""
