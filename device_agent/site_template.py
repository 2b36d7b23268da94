"""The `site.toml` that `headway agent init` writes: every key of `device_agent.config`, explained."""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
# Settings of one Headway device. Paths are relative to this file. docs/agent.md explains every key.

device = "line-1"             # this device's id in the fleet: small letters, digits and '-'
data_dir = "headway-data"     # labels, images, releases: back it up, never copy it to a second device
channel = "default"           # the product line whose releases and labels this device shares
# bundle = "bundle"           # release to start with; without it the device waits for one over MQTT
# precision = "int8"          # fp32, fp16, int8 or int8-tensorrt; by default the bundle's first

[camera]
kind = "folder"               # folder, video, watch, opencv, gstreamer, or a plug-in's
path = "images"               # folder, video and watch: where the files are
rate_fps = 1.0                # frames a second; 0 is as fast as they can be inspected
loop = false                  # folder and video: start again at the end
burst_gap_s = 2.0             # frames without a part id: this long a pause starts a new group
burst_max_s = 30.0            # and a group ends after this long even without a pause

# [camera]                    # a live camera instead
# kind = "opencv"
# index = 0                   # or: url = "rtsp://192.0.2.7/stream"
# retry_s = 0.5               # wait before the first reconnection; doubles up to retry_max_s
# retry_max_s = 30.0

# [camera]                    # or what another program writes into a folder
# kind = "watch"
# path = "incoming"
# names = "{part}_top.png"    # where its file names have the part id; * stands for anything
# poll_s = 0.2                # how often it is looked at
# delete = false              # files are deleted once taken

# [camera]                    # or a GStreamer pipeline, without its sink
# kind = "gstreamer"
# pipeline = "nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx"

# [camera.recipe]             # what of this camera's frames is inspected
# region = [0, 0, 1920, 1080] # x, y, width, height in its pixels; without it the whole frame
# mask = "mask.png"           # of the frame's size: what is white is inspected
# tile_px = 448               # width of a tile in its pixels; by default frames over 4 times the input are cut
# overlap = 0.125             # of neighbouring tiles, as a share of their side

# [camera.picture]            # when a picture cannot be right, and its part is rejected; 0 never asks
# black_share = 0.995         # so many of its pixels are black
# bright_share = 0.95         # or over-exposed
# frozen_after = 10           # or a live camera has given the very same picture so often again

[part]
good = ["good"]               # classes that pass: any other, and unknown, rejects the part
frames = 1                    # of each camera that make a part; more need part ids
decide_within_ms = 1000.0     # a part without a verdict so long after its frame is rejected
# masters = "masters"         # master parts, one folder of each class: no head may tell them five points worse

# [trigger]                   # one frame per part, on demand: POST /api/trigger
# topic = "line-1/part"       # and over MQTT: part ids on this topic of the broker below
# delay_ms = 0.0              # from the trigger until the part stands there
# limit = 64                  # parts that may wait for their frames

# [[output]]                  # verdicts also go to: a service,
# kind = "http"
# url = "https://mes.example/parts"
# timeout_s = 2.0
# token_file = "mes-token"

# [[output]]                  # a PLC (pip install 'headway-edge[modbus]')
# kind = "modbus"
# host = "192.0.2.20"
# port = 502
# unit = 1
# pass_coil = 0               # on only while the newest part passes; or reject_coil, the other way round
# counter_register = 0        # counts verdicts, written last
# heartbeat_register = 1      # counts on every second while the agent lives
# timeout_s = 0.5

[history]
keep_parts = 1000000          # verdicts kept on the device: headway agent history --csv parts.csv

[runtime]
threads = 0                   # processor threads for the backbone; 0 takes what measures fastest here
provider = "auto"             # of ONNX Runtime: auto takes the fastest that is right, or cpu, cuda
max_frame_ms = 0.0            # a release that takes longer is rolled back; 0: twice the one before, at least 50 ms
tensorrt = "auto"             # an engine takes over: auto where it is faster, on (required), or off

[page]
host = "127.0.0.1"            # beyond loopback: make accounts first (headway agent user add), and give TLS
port = 8080                   # 0 takes a free one; the agent prints its address
# cert_file = "page.pem"      # TLS
# key_file = "page.key"
# plain_http = false          # true: beyond loopback without TLS, where nobody listens
# public_url = "https://line-1.plant"   # behind a proxy on this machine (docs/page.md); make accounts first

# [mqtt]                      # without this table the device works alone
# host = "broker.example"
# port = 1883
# prefix = "headway/v1"
# keepalive_s = 30
# ca_file = "ca.pem"          # turns TLS on
# cert_file = "line-1.pem"
# key_file = "line-1.key"
# chunks_cert_file = "line-1-chunks.pem"
# trigger_cert_file = "line-1-trigger.pem"
# username = "line-1"
# password_file = "mqtt-password"

# [chunks]                    # a web server that has releases too, asked before the broker
# url = "https://fleet.example:8443/chunks/"

# [trust]                     # without this table releases and labels are taken unsigned
# root = "root.json"          # the fleet's root of trust, copied here by hand

[queue]
ask_below = 0.8               # ask an operator when the best class has less than this probability
young_labels = 3              # and about what is taken for a class of fewer labels than this
spot_check_share = 0.01       # and about this share of all others
limit = 200                   # at most this many samples wait; the least urgent give way

[store]
keep_samples = 2000           # unlabelled samples kept with their images; labelled ones stay for ever
keep_parts = 50               # of the last so many parts everything stays at hand for labelling
max_image_mib = 16384         # images on disk; certain ones go before uncertain ones, labelled ones never
ballast_mib = 4               # given up for labels when the disk is full

[log]
format = "text"               # or json: one object a line, for a collector
level = "info"                # debug, info, warning or error

# [metrics]                   # for Prometheus; without this table there are none
# host = "127.0.0.1"          # read-only and without a login
# port = 9464
"""
