"""Frames with their capture time, from folders, videos and live cameras.

`open_camera` gives a `Camera`; its `shots` yields until the source ends or `stop` is set. Rules kept here:

- A sample's bytes are what was delivered (folder) or a lossless PNG (all others); its id is their SHA-256.
- A bad file is quarantined, and rejects its part; a live camera is reconnected for ever, waiting longer each
  time; frames that nobody was quick enough for are counted.
- Every frame has a group: pictures of one part, which a score must never tell apart (docs/head.md). The part id
  where the source names one (each file is its own part unless an `index.csv` says otherwise), else the burst.

What is done with a frame is the station's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import cv2

from device_agent.camera.files import Folder, Video, Watch
from device_agent.camera.live import gstreamer_camera, opencv_camera, plugin_camera
from device_agent.camera.shot import Box, Camera, CameraState, Shot, Tally, encode_png, group_id
from device_agent.config import (
    CameraSettings,
    FolderCamera,
    GStreamerCamera,
    PluginCamera,
    VideoCamera,
    WatchCamera,
)

__all__ = ["Box", "Camera", "CameraState", "Shot", "Tally", "encode_png", "group_id", "open_camera"]


def open_camera(
    settings: CameraSettings,
    device: str,
    *,
    clock: Callable[[], float] = time.time,
    capture: Callable[[int | str], cv2.VideoCapture] | None = None,
    others: Sequence[CameraSettings] = (),
) -> Camera:
    """Return the source that the settings name. Nothing is read from a live camera yet.

    Args:
        settings: The `[camera]` table.
        device: This device's id, the first half of every group id.
        clock: UTC seconds for the record.
        capture: Opens a live camera; OpenCV's own way by default.
        others: The station's other cameras: one folder may be filled for several.

    Raises:
        ConfigError: no such folder or file, a folder without images, a pipeline that nothing here can run, or a
            plug-in that refuses its settings.
    """
    if isinstance(settings, FolderCamera):
        return Folder(settings, device, clock)
    if isinstance(settings, VideoCamera):
        return Video(settings, device, clock)
    if isinstance(settings, WatchCamera):
        beside = [each for each in others if isinstance(each, WatchCamera) and each.path == settings.path]
        return Watch(settings, device, clock, [each.names for each in beside])
    if isinstance(settings, GStreamerCamera):
        return gstreamer_camera(settings, device, clock)
    if isinstance(settings, PluginCamera):
        return plugin_camera(settings, device, clock)
    return opencv_camera(settings, device, clock, capture)
