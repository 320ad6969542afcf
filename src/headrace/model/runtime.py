"""TensorFlow, imported once, quiet and bit-stable. Only this package imports it.

One thread for each op and between ops: a step of a few hundred rows is too small to share out,
and a fixed order of additions is what makes a run repeatable. No device is pinned: where
TensorFlow sees a GPU, it uses it, and takes of its memory what it needs. The same seed gives the
same bytes on the same kind of device, not across kinds. `float32` means that on a GPU too:
TF32 is what `model.precision: tensorfloat32` asks for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_KERAS = "TF_USE_LEGACY_KERAS"
_NOISE = (b"absl::InitializeLog()", b"Could not find cuda drivers", b"oneDNN custom operations")


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Drop TensorFlow's start-up chatter from stderr; every other line is passed on.

    No log level reaches these lines: the C++ side writes them before its logger exists.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                if not any(noise in line for noise in _NOISE):
                    os.write(2, line)


@contextmanager
def _without_keras() -> Iterator[None]:
    """Keep TensorFlow from importing Keras 3 at its end, for optimizers that nothing here uses.

    Keras imports matplotlib and scikit-learn where they are: half of the time of it all. Told to
    look for the old Keras, and not finding it, TensorFlow goes without. Whoever wants `keras` or
    `tf.keras` imports it afterwards as ever.
    """
    told, known = os.environ.get(_KERAS), sys.modules.get("tf_keras")
    os.environ[_KERAS] = "1"
    sys.modules["tf_keras"] = None  # type: ignore[assignment]  # importing it raises
    try:
        yield
    finally:
        os.environ.pop(_KERAS)
        del sys.modules["tf_keras"]
        if told is not None:
            os.environ[_KERAS] = told
        if known is not None:
            sys.modules["tf_keras"] = known


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# oneDNN's ops are no faster at this size (5.1 µs a sample with them, 4.5 without). Products pick
# their kernels by the processor's instructions either way: bytes repeat on one kind of processor
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
with _quiet_import(), _without_keras():
    import tensorflow as tf

tf.__path__[:] = [place for place in tf.__path__ if place]  # without the place of the old Keras
tf.get_logger().setLevel("ERROR")
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.experimental.enable_op_determinism()
tf.config.experimental.enable_tensor_float_32_execution(False)
for _gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(_gpu, True)


def allow_tensorfloat32() -> None:
    """Let every product of float32 matrices in this process run as TF32, where the GPU can."""
    tf.config.experimental.enable_tensor_float_32_execution(True)


def device() -> str:
    """What a model in this process computes on: `GPU:0`, or `CPU:0` where no GPU is seen."""
    return "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"


__all__ = ["allow_tensorfloat32", "device", "tf"]
