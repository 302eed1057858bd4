"""The pieces that Matroska files are made of: element ids, sizes and numbers (RFC 8794, RFC 9559)."""

from __future__ import annotations

# Of an element whose end is not known when it begins.
UNKNOWN_SIZE = b"\x01" + b"\xff" * 7

# Element ids (RFC 8794, 11; RFC 9559, 5.1).
EBML = b"\x1a\x45\xdf\xa3"
EBML_VERSION = b"\x42\x86"
EBML_READ_VERSION = b"\x42\xf7"
EBML_MAX_ID_LENGTH = b"\x42\xf2"
EBML_MAX_SIZE_LENGTH = b"\x42\xf3"
DOC_TYPE = b"\x42\x82"
DOC_TYPE_VERSION = b"\x42\x87"
DOC_TYPE_READ_VERSION = b"\x42\x85"
VOID = b"\xec"
SEGMENT = b"\x18\x53\x80\x67"
SEEK_HEAD = b"\x11\x4d\x9b\x74"
SEEK = b"\x4d\xbb"
SEEK_ID = b"\x53\xab"
SEEK_POSITION = b"\x53\xac"
INFO = b"\x15\x49\xa9\x66"
TIMESTAMP_SCALE = b"\x2a\xd7\xb1"
DURATION = b"\x44\x89"
MUXING_APP = b"\x4d\x80"
WRITING_APP = b"\x57\x41"
TRACKS = b"\x16\x54\xae\x6b"
TRACK_ENTRY = b"\xae"
TRACK_NUMBER = b"\xd7"
TRACK_UID = b"\x73\xc5"
TRACK_TYPE = b"\x83"
FLAG_LACING = b"\x9c"
DEFAULT_DURATION = b"\x23\xe3\x83"
CODEC_ID = b"\x86"
CODEC_PRIVATE = b"\x63\xa2"
CODEC_DELAY = b"\x56\xaa"
VIDEO = b"\xe0"
PIXEL_WIDTH = b"\xb0"
PIXEL_HEIGHT = b"\xba"
FLAG_INTERLACED = b"\x9a"
PROJECTION = b"\x76\x70"
PROJECTION_TYPE = b"\x76\x71"
PROJECTION_POSE_YAW = b"\x76\x73"
PROJECTION_POSE_ROLL = b"\x76\x75"
COLOUR = b"\x55\xb0"
RANGE = b"\x55\xb9"
CLUSTER = b"\x1f\x43\xb6\x75"
CLUSTER_TIME = b"\xe7"
SIMPLE_BLOCK = b"\xa3"
CUES = b"\x1c\x53\xbb\x6b"
CUE_POINT = b"\xbb"
CUE_TIME = b"\xb3"
CUE_TRACK_POSITIONS = b"\xb7"
CUE_TRACK = b"\xf7"
CUE_CLUSTER_POSITION = b"\xf1"


def header() -> bytes:
    """The EBML header of a Matroska file."""
    fields = [
        (EBML_VERSION, uint(1)),
        (EBML_READ_VERSION, uint(1)),
        (EBML_MAX_ID_LENGTH, uint(4)),
        (EBML_MAX_SIZE_LENGTH, uint(8)),
        (DOC_TYPE, b"matroska"),
        (DOC_TYPE_VERSION, uint(4)),  # CodecDelay and Colour came with 4
        (DOC_TYPE_READ_VERSION, uint(2)),  # SimpleBlock came with 2
    ]
    return master(EBML, fields)


def seek_head(info_at: int, tracks_at: int, cues_at: int | None) -> bytes:
    """Where Info, Tracks and Cues lie in the segment; of one length whatever the places."""
    places = [(INFO, info_at), (TRACKS, tracks_at)]
    if cues_at is not None:
        places.append((CUES, cues_at))
    seeks = [
        (SEEK, element(SEEK_ID, name) + element(SEEK_POSITION, uint(place, 8)))
        for name, place in places
    ]
    return master(SEEK_HEAD, seeks)


def cue_point(track: int, time: int, position: int) -> bytes:
    """The body of a CuePoint: the cluster at a position of the segment holds a time, in its ticks."""
    place = [(CUE_TRACK, uint(track)), (CUE_CLUSTER_POSITION, uint(position))]
    return element(CUE_TIME, uint(time)) + master(CUE_TRACK_POSITIONS, place)


def master(name: bytes, children: list[tuple[bytes, bytes]]) -> bytes:
    """An element that holds others, each a name and a body."""
    return element(name, b"".join(element(*child) for child in children))


def element(name: bytes, body: bytes) -> bytes:
    """An element: its name, its length, its body."""
    return name + vint(len(body)) + body


def void(length: int) -> bytes:
    """A Void element of `length` bytes in all, 2 or more."""
    size_bytes = min(8, length - 1)
    body = length - 1 - size_bytes
    return VOID + vint(body, size_bytes) + bytes(body)


def vint(value: int, length: int | None = None) -> bytes:
    """EBML variable-size integer (RFC 8794, 4), as short as can be unless `length` is given."""
    # All ones mean "unknown", so a length holds one value less than its bits could.
    length = length or _vint_bytes(value)
    return (value | 1 << 7 * length).to_bytes(length, "big")


def _vint_bytes(value: int) -> int:
    """How many bytes `vint` makes of a value."""
    return next(n for n in range(1, 9) if value < (1 << 7 * n) - 1)


def read_vint(data: bytes, at: int) -> tuple[int, int]:
    """An EBML variable-size integer, and the place behind it. Raises ValueError if it is not whole."""
    length = 9 - data[at].bit_length() if at < len(data) and data[at] else 0
    if not length or at + length > len(data):
        raise ValueError("an integer is cut off")
    return int.from_bytes(data[at : at + length], "big") & ~(1 << 7 * length), at + length


def uint(value: int, length: int | None = None) -> bytes:
    """An unsigned integer, big-endian, as short as can be unless `length` is given."""
    return value.to_bytes(length or max(1, (value.bit_length() + 7) // 8), "big")
