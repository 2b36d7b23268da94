"""Figures, beside what one would run instead."""

import os

# ONNX Runtime would report networks and machine to Microsoft; see `device_agent`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
