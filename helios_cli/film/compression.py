"""The compression of a film's frames: what can be chosen, and the options of ffmpeg for it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions

ENCODERS = {
    # The profile option is a ceiling; 8x8dct is what makes the fastest presets High as well.
    "h264": ("-c:v", "libx264", "-profile:v", "high", "-x264-params", "8x8dct=1"),
    # Apple's players open HEVC only under the tag hvc1.
    "hevc": ("-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error"),
    "av1": ("-c:v", "libsvtav1"),
}
LOSSLESS = ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1")

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
SVT_AV1_PRESETS = dict(zip(PRESETS, (12, 11, 10, 9, 8, 7, 5, 4, 2), strict=True))
CRF_RANGES = {"h264": (1, 51), "hevc": (0, 51), "av1": (1, 63)}
"""From best to worst. H.264 leaves out 0: that is lossless, in a profile most players show as black."""

DECODING_DELAYS = {"h264": 2, "hevc": 2, "av1": 0}
"""Frames by which decoding runs ahead of display. The encoders leave it out of pieces too short to need it."""

ENCODER_THREADS = 4
"""Fixed, since the encoders decide by it: a film begun on one machine continues in the same way on another."""

TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)
"""Converts and tags. The output options -color_primaries and -color_trc have no effect after a filter."""

TO_TAGGED_RGB = "format=bgr0,setparams=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc"


@dataclass(frozen=True)
class Encoding:
    """The compression of an .mp4's frames. Raises InputError for values that the codec does not have."""

    codec: str = "h264"
    crf: int = 17
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.codec not in CRF_RANGES:
            raise InputError(f"unknown codec {self.codec}", hint=f"write one of {', '.join(CRF_RANGES)}")
        low, high = CRF_RANGES[self.codec]
        if not low <= self.crf <= high:
            hint = f"write a number from {low} (best) to {high}"
            if self.codec == "h264":
                hint += "; for a lossless film end the name of the output in .mkv"
            raise InputError(f"crf {self.crf} is out of range for {self.codec}", hint=hint)
        if self.preset not in PRESETS:
            raise InputError(f"unknown preset {self.preset}", hint=f"write one of {', '.join(PRESETS)}")

    @classmethod
    def of(cls, options: RenderOptions) -> Encoding:
        return cls(options.codec, options.crf, options.preset)

    def arguments(self) -> list[str]:
        """Return ffmpeg's output options."""
        preset = SVT_AV1_PRESETS[self.preset] if self.codec == "av1" else self.preset
        return [*ENCODERS[self.codec], "-preset", f"{preset}", "-crf", f"{self.crf}"]


def piece_arguments(encoding: Encoding | None, rate: Fraction, *, before: str = "") -> list[str]:
    """Return output options of a piece, a fragmented MP4: bt709, converted and tagged; lossless RGB for None. `before`
    are filters for the frames.

    Pieces of one encoding and `rate` (frames a second) fit together whatever their lengths: they have the same header
    and the same decoding delay.
    """
    if encoding is None:
        # QuickTime's kind of MP4: before 8 ffmpeg writes FFV1 into no other.
        filters, video, delay, kind = TO_TAGGED_RGB, [*LOSSLESS], 0, "mov"
    else:
        filters, video, delay, kind = TO_BT709, encoding.arguments(), DECODING_DELAYS[encoding.codec], "mp4"
    # One tick for both: the filter's is the file's before ffmpeg 7, and the encoder's from then on.
    timing = ["-enc_time_base", f"1/{rate.numerator}", "-video_track_timescale", f"{rate.numerator}"]
    timing += ["-bsf:v", f"setts=pts=PTS:dts=(N-{delay})*{rate.denominator}", "-threads", f"{ENCODER_THREADS}"]
    filters = f"{before},{filters}" if before else filters
    return ["-vf", filters, *video, *timing, "-movflags", "+empty_moov+default_base_moof+frag_keyframe", "-f", kind]
