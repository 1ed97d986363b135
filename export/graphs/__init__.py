"""Graphs: the reference's weights, rewritten for inference, and their trace to ONNX."""
