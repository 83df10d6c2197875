"""Open a video file with FFmpeg safely, whoever made it.

FFmpeg gets the bytes of a file without its name, reads the formats below alone, and has no protocol by which it could
open anything else. Frames beyond `MOST_PIXELS` are not read, nor is a file that keeps the processor busy for
`PATIENCE` seconds without giving a packet.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

MOST_PIXELS = 2**25
"""The most pixels of a frame: 8192 x 4096."""
PATIENCE = 5.0
"""Seconds of the processor's time, not of the clock: a slow disk or a busy machine makes no video broken."""
FORMATS = (
    "mov,matroska,avi,flv,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,ivf,ogg,asf,rm,mxf,dv,mjpeg,gif,apng,yuv4mpegpipe,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe"
)
"""FFmpeg's names of the formats that are read; playlists, which name other files, are not among them."""
_BUFFER = 2**18  # bytes read at a time
_NOT_READ = "no format that is read here, or frames of more than {:,} pixels"
_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")  # the boxes of an mp4 that hold others


class VideoError(ValueError):
    """A video cannot be read; the message names the file and the reason in one line."""


def unreadable(source: object, reason: str) -> VideoError:
    """Make the error of a source, in one line."""
    return VideoError(f"{source}: {' '.join(reason.split())}")


class _WatchedFile:
    """A file that FFmpeg reads, and that seems to end once reading fails or takes too long without a packet."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self._path, self._file, self._problem = path, file, ""
        self.tell = file.tell
        self.moved()

    def moved(self) -> None:
        """Start to measure time anew."""
        self._since = time.thread_time()

    def check(self) -> None:
        """Raise a VideoError if reading failed, or brought nothing for too long."""
        if not self._problem and time.thread_time() - self._since > PATIENCE:
            self._problem = f"damaged: nothing to show for {PATIENCE:g} s of reading"
        if self._problem:
            raise unreadable(self._path, self._problem)

    def check_size(self, width: int, height: int) -> None:
        """Raise a VideoError if a frame is too large."""
        if width * height > MOST_PIXELS:
            raise unreadable(self._path, f"frames of {width} x {height}, more than {MOST_PIXELS:,} pixels")

    # FFmpeg goes on after an error, and PyAV prints errors of these two methods from the second one on.
    def read(self, size: int) -> bytes:
        """Read at most `size` bytes; none at the end."""
        try:
            self.check()
            return self._file.read(size)
        except OSError as error:
            self._problem = f"cannot be read: {error.strerror}"
        except VideoError:
            pass
        return b""

    def seek(self, offset: int, whence: int) -> int:
        """Move to a place and return it, or a negative number where there is none."""
        try:
            return self._file.seek(offset, whence)
        except OSError:
            return -1


@dataclass(frozen=True)
class Opened:
    """A container and its video stream."""

    source: _WatchedFile
    container: InputContainer
    stream: VideoStream

    def packets(self, *streams: VideoStream) -> Iterator[Packet[Any]]:
        """Yield the packets of these streams, or of all."""
        for packet in self.container.demux(*streams):  # the last ones are empty, one for each stream
            self.source.check()
            if packet.size:
                self.source.moved()
            yield packet

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the frames of the video stream from here on."""
        for packet in self.packets(self.stream):
            for frame in packet.decode():
                self.source.check_size(frame.width, frame.height)  # the size may change within a file
                yield frame


@contextmanager
def open_video(path: Path) -> Generator[Opened]:
    """Open the video stream of a file; any error of FFmpeg becomes a VideoError."""
    av = pyav()
    try:
        if not path.is_file():  # a pipe would wait for ever
            raise unreadable(path, "neither a file nor a folder" if path.exists() else "no such file")
        if path.stat().st_size == 0:
            raise unreadable(path, "empty file (0 bytes)")
        # FFmpeg counts the edges too that decoders put around a frame.
        codec = {"max_pixels": str(2 * MOST_PIXELS)}
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", **codec}
        with path.open("rb", buffering=0) as file:
            source = _WatchedFile(path, file)
            _check_counts(path, source)
            try:
                with av.open(source, options=options, metadata_errors="ignore", buffer_size=_BUFFER) as container:
                    source.check()
                    yield Opened(source, container, _video_stream(path, source, container, codec))
            except av.error.FFmpegError as error:
                source.check()
                # Formats that are not on the list and too many pixels are an invalid argument to FFmpeg.
                invalid = isinstance(error, av.error.ArgumentError)
                why = _NOT_READ.format(MOST_PIXELS) if invalid else error.strerror
                raise unreadable(path, f"not a video, or a damaged one: {why}") from error
    except FileNotFoundError as error:
        raise unreadable(path, "no such file") from error
    except OSError as error:
        raise unreadable(path, f"cannot be read: {error.strerror}") from error


def _check_counts(path: Path, source: _WatchedFile) -> None:
    """Refuse an mp4 that promises billions of frames in a few bytes: FFmpeg would make a table of them at once."""
    place, size = 0, source.seek(0, io.SEEK_END)
    while place + 8 <= size:
        source.check()
        source.seek(place, io.SEEK_SET)
        length, kind, *numbers = struct.unpack(">I4s3I", source.read(20).ljust(20, b"\0"))
        if kind in (b"stsz", b"trun") and numbers[2 if kind == b"stsz" else 1] > size:
            raise unreadable(path, "damaged: it promises more frames than it has bytes")
        if length == 1:  # a length of 64 bits follows
            length = numbers[0] << 32 | numbers[1]
        place += 8 if kind in _BOXES else max(8, length or size)
    source.seek(0, io.SEEK_SET)


def _video_stream(path: Path, source: _WatchedFile, container: InputContainer, options: dict[str, str]) -> VideoStream:
    """Choose the stream to decode, and set these options of its codec."""
    stream: VideoStream
    cover = pyav().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise unreadable(path, "no video stream in it")
    best = container.streams.best("video")
    stream = next((stream for stream in streams if stream is best), streams[0])
    codec: Any = stream.codec_context  # None, whatever PyAV's stubs say, where FFmpeg does not know the codec
    if codec is None:
        raise unreadable(path, "a codec that FFmpeg does not know")
    source.check_size(codec.width, codec.height)
    codec.options = options
    # Several videos are read at a time, so each on one thread.
    stream.thread_type, codec.thread_count = "NONE", 1
    return stream


def pyav() -> Any:
    """Import PyAV, or raise an ImportError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError('reading videos needs PyAV: pip install "multigrain[data]"') from error
    return av
