"""TensorFlow comes without Keras, which whoever wants it imports afterwards as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys
from headrace.model import runtime
loaded = [name for name in ("keras", "matplotlib", "sklearn", "tf_keras") if name in sys.modules]
assert loaded == [], loaded
assert os.environ.get("TF_USE_LEGACY_KERAS") == None
assert all(runtime.tf.__path__)
import keras
assert runtime.tf.keras.optimizers.Adam is keras.optimizers.Adam
"""


@pytest.mark.slow
def test_nothing_of_keras_is_imported_with_tensorflow_and_all_of_it_afterwards() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
