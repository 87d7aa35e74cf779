"""Stand-in for Triton's `openvino` backend on hosts without it: same files, same parameters."""

from pathlib import Path

import openvino

from teran.serving.backend import Arrays, EngineBackend, Run


class TritonPythonModel(EngineBackend):
    """Runs `model.xml` on the CPU."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:
        bf16 = parameters.get("HINT_BF16", "NO").upper() == "YES"
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Models that share the cores must not all be bound to the first ones.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": threads or int(parameters.get("INFERENCE_NUM_THREADS", 0)),
        }
        request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

        def run(inputs: Arrays) -> Arrays:
            # The outputs are read before the next run, so they need no copy.
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
            return {output.any_name: value for output, value in results.items()}

        return run
