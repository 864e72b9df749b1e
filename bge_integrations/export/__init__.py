"""ONNX out: a model as a folder that Transformers.js and ONNX Runtime take as it is.

Example:
    ```python
    from bge_integrations.export import export_onnx

    report = export_onnx("BAAI/bge-base-en-v1.5", "bge-base-onnx")
    ```
"""

from bge_integrations.export.exporter import ExportReport, export_onnx

__all__ = ["ExportReport", "export_onnx"]
