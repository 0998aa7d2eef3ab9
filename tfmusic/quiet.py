"""Starts TensorFlow without the lines about CUDA and oneDNN that say nothing to a user; other lines stay."""

import os
import re
import sys
import tempfile

_NOISE = re.compile(
    r"absl::InitializeLog|oneDNN custom operations|cudart_stub|cuda drivers|cuInit|cpu_feature_guard"
    r"|To enable the following instructions|computation_placer|Unable to register|TF-TRT Warning"
)


def start_tensorflow() -> None:
    """Imports TensorFlow and looks for devices, with standard error filtered meanwhile."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        # The lines come from C++ before any logger of Python exists, so the file descriptor itself is turned.
        kept = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
            if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":  # it reads records; others have the GPU
                tf.config.set_visible_devices([], "GPU")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not _NOISE.search(line))
            sys.stderr.flush()
