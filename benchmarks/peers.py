"""One tower of one model in every library that can run it: name -> a call that returns the embeddings.

Each at its best: torch in inference mode with sdpa, plain and compiled; onnxruntime with all optimisations, int8 by its own
dynamic quantisation; openvino in latency and in throughput mode (two requests at once), int8 by nncf with calibration.
What is not installed or fails is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PRECISIONS = ("float32", "bfloat16", "int8")
TWO = ", two at once"

Calls = dict[str, Callable]


def tower(model, kind: str):
    """A torch module of one tower with its projection, for running and for export."""
    import torch

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model.vision_model if kind == "image" else model.text_model
            projections = ("visual_projection",) if kind == "image" else ("text_projection",)
            self.projection = next((getattr(model, n) for n in projections if hasattr(model, n)), torch.nn.Identity())

        def forward(self, x):
            return self.projection(self.inner(x).pooler_output)

    return Tower().eval()


def torch_calls(module, x, precisions: tuple[str, ...]) -> Calls:
    import copy

    import torch

    def call(m, given):
        def run():
            with torch.inference_mode():
                return m(given).float().numpy()

        return run

    found = {}
    for name in (p for p in ("float32", "bfloat16") if p in precisions):
        half = name == "bfloat16"
        m, given = (copy.deepcopy(module).to(torch.bfloat16), x) if half else (module, x)
        if half and x.is_floating_point():
            given = x.to(torch.bfloat16)
        found[f"transformers {name}"] = call(m, given)
        if torch.backends.cpu.get_cpu_capability() != "AVX2" and torch.cpu._is_amx_tile_supported():
            print(f"left out: torch.compile {name}, whose code writes past its heap on AMX (torch 2.13)")
            continue
        compiled = call(torch.compile(m, dynamic=False), given)
        compiled()
        found[f"torch.compile {name}"] = compiled
    return found


def onnx_calls(module, x, threads: int, folder: Path, precisions: tuple[str, ...] = PRECISIONS) -> Calls:
    import onnxruntime as ort
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    paths = {"float32": folder / "tower.onnx", "int8": folder / "tower.int8.onnx"}
    torch.onnx.export(module, (x,), str(paths["float32"]), dynamo=True, external_data=False, verbose=False)
    quantize_dynamic(str(paths["float32"]), str(paths["int8"]), per_channel=True, weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul", "Gemm"])  # fmt: skip
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    given = x.numpy()
    found = {}
    for precision, path in ((p, path) for p, path in paths.items() if p in precisions):
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found[f"onnxruntime {precision}"] = lambda session=session, name=name: session.run(None, {name: given})[0]
    return found


def openvino_models(module, x, quantised: bool) -> dict:
    """precision -> (model, precision hint)."""
    import openvino as ov

    model = ov.convert_model(module, example_input=x)
    model.reshape(list(x.shape))
    found = {"float32": (model, "f32"), "bfloat16": (model, "bf16")}
    if not quantised:
        return found
    try:
        import nncf

        noise = [x.numpy() for _ in range(4)]
        quantized = nncf.quantize(model.clone(), nncf.Dataset(noise), model_type=nncf.ModelType.TRANSFORMER,
                                  subset_size=4)  # fmt: skip
        found["int8"] = (quantized, "bf16")
    except Exception as error:
        print(f"openvino int8 left out: {str(error).splitlines()[0][:100]}")
    return found


def openvino_calls(module, x, threads: int, quantised: bool, precisions: tuple[str, ...]) -> Calls:
    import openvino as ov

    given, found = x.numpy(), {}
    for precision, (model, hint) in openvino_models(module, x, quantised and "int8" in precisions).items():
        if precision not in precisions:
            continue
        for mode in ("LATENCY", "THROUGHPUT"):
            options = {"PERFORMANCE_HINT": mode, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
            compiled = ov.Core().compile_model(model, "CPU", options)
            if mode == "LATENCY":
                request = compiled.create_infer_request()
                found[f"openvino {precision}"] = lambda request=request: next(iter(request.infer([given]).values()))
                continue
            queue = ov.AsyncInferQueue(compiled, 2)

            def pair(queue=queue):
                for _ in range(2):
                    queue.start_async([given])
                queue.wait_all()
                return next(iter(queue[0].results.values()))

            pair.items = 2
            found[f"openvino {precision}{TWO}"] = pair
    return found


PEERS = ("torch", "onnxruntime", "openvino", "nncf")  # nncf: openvino's int8


def all_calls(
    model,
    kind: str,
    x,
    threads: int,
    folder: Path,
    chosen: tuple[str, ...] = PEERS,
    precisions: tuple[str, ...] = PRECISIONS,
) -> Calls:
    module, found = tower(model, kind), {}
    makers = {
        "torch": lambda: torch_calls(module, x, precisions),
        "onnxruntime": lambda: onnx_calls(module, x, threads, folder, precisions),
        "openvino": lambda: openvino_calls(module, x, threads, "nncf" in chosen, precisions),
    }
    for name in (n for n in makers if n in chosen):
        try:
            found |= makers[name]()
        except Exception as error:
            print(f"left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    return found
