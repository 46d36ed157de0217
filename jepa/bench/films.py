"""A film to measure decoding with: the camera moves over the two photographs that scikit-learn ships.

Decoding time depends on the content: a drawn test picture costs half of a photograph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

FPS = 30
_CODING = {"preset": "medium", "crf": "23", "threads": "1", "sc_threshold": "0"}  # key frames only where `gop` says


def write_film(path: Path, seconds: float, size: tuple[int, int], gop: int, b_frames: int) -> None:
    """An mp4 of H.264, one cut in the middle.

    Args:
        size: height and width; even.
        gop: frames from one key frame to the next.
        b_frames: most B-frames in a row.
    """
    import av

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    count = max(1, round(seconds * FPS))
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options=_CODING)
        assert isinstance(stream, av.VideoStream), "libx264 is no video codec"
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        for number in range(count):
            part = number / count
            photograph = photographs[0 if part < 0.5 else 1]
            zoom = 0.5 + 0.25 * np.sin(2 * np.pi * part)
            width, height = photograph.width * zoom, photograph.height * zoom
            left = (photograph.width - width) * (0.5 + 0.5 * np.sin(7 * part))
            top = (photograph.height - height) * (0.5 + 0.5 * np.cos(5 * part))
            box = (left, top, left + width, top + height)
            picture = np.asarray(photograph.resize((size[1], size[0]), Image.Resampling.BILINEAR, box), dtype=np.int16)
            grain = noise.integers(-6, 7, (*size, 1), dtype=np.int16)  # as a camera has
            frame = av.VideoFrame.from_ndarray(np.clip(picture + grain, 0, 255).astype(np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
