"""A version as a TensorFlow SavedModel: raw request columns in, probability out.

Everything between lies in the graph, in TensorFlow's own ops: `hashes` and `zones` are the request
features' arithmetic, `features` the features of a line, `weights` what prediction reads of a
state, `graph` the model, `save` the folder and its proof.
"""
