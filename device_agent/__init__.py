"""The device's side: frames to verdicts, labels to a new head."""

import os

# From 1.29 on ONNX Runtime reports to Microsoft on Linux too: a lasting id of the device, names and digests of
# networks, how often they run. Nothing of a plant leaves it unasked. It is read once, when ONNX Runtime is first
# imported, which only happens below this package. Whoever wants the reports sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
