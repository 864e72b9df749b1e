"""A script that quantizes an OpenVINO graph to int8, in a process of its own.

When it is imported, nncf changes the class of new loggers, and it prints bars and reports to stdout: so it does not run
in the user's process. The script takes a folder with `float32.xml` and `inputs.npz` and leaves `int8.xml` there.
"""

import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Quantize with the ranges of `inputs.npz`: arrays called "<number>/<name of an input>", each (1, tokens)."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # both libraries report on their use with it
    import nncf  # type: ignore[import-untyped]
    import numpy as np
    import openvino  # type: ignore[import-untyped]

    samples: dict[str, dict[str, object]] = {}
    with np.load(folder / "inputs.npz") as arrays:
        for key, array in arrays.items():
            number, _, name = key.partition("/")
            samples.setdefault(number, {})[name] = array
    quantized = nncf.quantize(
        openvino.Core().read_model(folder / "float32.xml"),
        nncf.Dataset(list(samples.values())),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
