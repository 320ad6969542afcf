"""Open Inference Protocol v2, over REST (JSON and binary tensors) and over gRPC.

https://github.com/kserve/open-inference-protocol, with Triton's binary tensor data extension. A
line is a model of that protocol; each declared column is an input tensor of shape [n].
"""
