"""What a production service imports: no ONNX, no framework, no command line."""
