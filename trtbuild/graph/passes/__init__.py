"""Rewrites of ONNX models, one per file.

A pass is a function that changes a model in place and returns what it changed, one short
line per change, nothing if it changed nothing. Outputs of the model stay as they were, up to
rounding where a pass says so.
"""
