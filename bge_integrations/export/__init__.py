"""Export of a model as a folder: ONNX for Transformers.js and ONNX Runtime, or int8 for this package on OpenVINO.

Example:
    ```python
    from bge_integrations.export import export_onnx, quantize_openvino

    report = export_onnx("BAAI/bge-base-en-v1.5", "bge-base-onnx")
    report = quantize_openvino("BAAI/bge-base-en-v1.5", "bge-base-int8", my_texts)
    ```
"""

from bge_integrations.export.exporter import ExportReport, export_onnx
from bge_integrations.export.int8 import QuantizeReport, quantize_openvino

__all__ = ["ExportReport", "QuantizeReport", "export_onnx", "quantize_openvino"]
