"""The server's side: labelled images to a bundle."""

import os

# torch's threads spin while they wait for each other. On a machine that does anything else besides, training
# then took four times the processor time (mobilenetv2, 2 cores under load: 361 against 86 ms an image). The
# OpenMP runtime reads this when torch is first imported, which only happens below this package.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# ONNX Runtime would report networks and machine to Microsoft; see `device_agent`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
