"""Stand-in for Triton's `onnxruntime` backend on hosts without it: same files, same parameters."""

from pathlib import Path

import onnxruntime

from teran.runtime.backend import Arrays, EngineBackend, Run


class TritonPythonModel(EngineBackend):
    """Runs `model.onnx` on the CPU."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or int(parameters.get("intra_op_thread_count", 0))
        # Threads that spin for work would take the cores the other models need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(inputs: Arrays) -> Arrays:
            return dict(zip(names, session.run(names, inputs), strict=True))

        return run
