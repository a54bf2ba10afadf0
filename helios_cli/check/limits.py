"""The limits from which a measure becomes a finding. This table is all there is to adjust.

An ordinary film has no findings: each limit lies above the values of panned, grainy and dark test films, and well below
those of a fault that a viewer sees at once. A finding is a place to look at, not a proof that something is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A limit: `means` says what is compared with `value`, and which side of it is a finding; `why`, why this value.
    Values are shown with `digits` decimals."""

    value: float
    unit: str
    means: str
    why: str
    digits: int = 1


BLACK_BRIGHTNESS = Limit(
    10,
    "levels",
    "A frame is black if its mean luma is below this and it is also uniform.",
    "Encoded black comes back within 2. A night scene has lights, and so is not uniform.",
)
UNIFORM_CONTRAST = Limit(
    1.5,
    "levels",
    "A frame is uniform if the standard deviation of luma over the picture is below this.",
    "Values that are not numbers, or have collapsed, decode to one flat colour, under 0.5 after encoding; thick fog "
    "is about 5.",
)
FLAT_SECONDS = Limit(
    0.5,
    "s",
    "Black or uniform frames are a finding if they last at least this long, or for the whole film.",
    "A fade through black between two shots is shorter.",
)
FROZEN_STEP = Limit(
    0.1,
    "levels",
    "A frame repeats the one before if their mean absolute difference is below this.",
    "A repeated frame encodes to 0.05 or less, except for an occasional key frame, which is forgiven; a slow pan over "
    "a dark scene gives 0.4.",
)
FROZEN_SECONDS = Limit(
    1.0,
    "s",
    "Repeated frames are a finding if they last at least this long, or for the whole film.",
    "Three quarters of a chunk; drawn animation holds a picture for some tenths of a second.",
)
FLICKER = Limit(
    2,
    "levels",
    "How far the mean luma of a frame is from the mean of its two neighbours', as the median over a chunk. Brightness "
    "that alternates at every frame gives the distance of the two values; a fade, a flash or a cut gives about 0.",
    "Alternation is seen from about 1 % of the range; at ordinary speeds motion alone stays below 0.5.",
)
FLICKER_SHARE = Limit(
    0.2,
    "of the motion",
    "Flicker must also be at least this share of the mean difference from frame to frame.",
    "When the whole view changes within some frames its brightness does too, by up to a tenth of the motion.",
)
FLICKER_SWING = Limit(
    3,
    "levels",
    "How far mean luma rises and falls periodically, from lowest to highest: at least four periods in a chunk, or in "
    "six seconds where it is slower, down to 0.67 Hz. A pulse at every chunk of 33 frames has 0.73 Hz at 24 frames a "
    "second.",
    "A swing of 1 % of the range is seen in an even area, where the eye is most sensitive, near 10 Hz. What moves in "
    "an ordinary scene changes mean luma too, but not periodically.",
)
FLICKER_SWING_SHARE = Limit(
    0.15,
    "of the motion",
    "The mean change from frame to frame of a brightness that rises and falls so must also be at least this share of "
    "the mean difference from frame to frame.",
    "Shapes that pass in a whip pan, or leap at every seam, give 0.07 to 0.1. So a slow pulse in a film that moves "
    "much is not found.",
    digits=2,
)
SEAM_RATIO = Limit(
    1.5,
    "times",
    "A seam jumps if the difference across the border of two chunks is this many times the largest that this film has "
    "within its chunks, except for one frame in 50. Where motion is faster or slower, that is scaled by the usual "
    "difference, which is the larger of the two chunks' medians.",
    "A border without a fault is like any other frame: jerky motion has a high limit, a steady camera a low one.",
)
SEAM_LEVELS = Limit(
    3,
    "levels",
    "A jump must also exceed the usual difference by this much.",
    "In a quiet scene the coder's key frames alone are several times the usual difference.",
)
DRIFT_BRIGHTNESS = Limit(
    25,
    "levels",
    "Mean luma of a take's last 15 % of frames against its first 15 %.",
    "A tenth of the range, seen at once where the two ends are cut together; a pan over one scene stays below 5.",
)
DRIFT_COLOR = Limit(
    10,
    "levels",
    "Distance of the mean colours of the two ends in the plane of blue and red difference, so apart from brightness.",
    "A colour cast that is plain to see when the two ends are shown side by side.",
)
DRIFT_SATURATION = Limit(
    20,
    "levels",
    "Mean distance of the largest and the smallest channel, last 15 % against first 15 %.",
    "Ordinary scenes lie between 20 and 60: half of it lost or gained shows as fading or as burning colours.",
)
DRIFT_CONTRAST = Limit(
    15,
    "levels",
    "Standard deviation of luma over the picture, last 15 % against first 15 %.",
    "Ordinary scenes lie between 30 and 60; half of it lost or gained shows as haze or as harshness.",
)
DRIFT_BLUR = Limit(
    0.12,
    "",
    "Blur, from 0 to 1, last 15 % against first 15 %: the share of the differences between neighbouring pixels that "
    "is left when the picture is blurred once more.",
    "Two films of Helios at 640x384 change by 0.02 and 0.06; while a Gaussian of up to 2 pixels blurs them, by 0.19 "
    "and 0.24.",
    digits=2,
)
DRIFT_ENTROPY = Limit(
    1.5,
    "bits",
    "Entropy of the distribution of luma levels, last 15 % against first 15 %.",
    "A bit less is half as many levels in use. Ordinary scenes have 6.5 to 7.7 bits, and night scenes 5.",
    digits=2,
)
REPEAT_DEPARTURE = Limit(
    12,
    "levels",
    "A film can come back only after a chunk was at least this far from its take's first one.",
    "A fixed camera with something moving in view stays below this and is no repetition.",
)
REPEAT_RETURN = Limit(
    0.25,
    "of the largest distance",
    "A later chunk repeats the start if its distance from it has fallen to this share of the largest one before.",
    "A repeated chunk comes within 0.05; other scenes of a film lie at 0.5 to 1.",
)

LIMITS = {name.lower(): limit for name, limit in list(globals().items()) if isinstance(limit, Limit)}
"""All of them by name, for the report."""
