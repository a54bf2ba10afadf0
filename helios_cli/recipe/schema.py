"""The recipe: a film written down. One schema for TOML, YAML and JSON; every other source becomes one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import InitErrorDetails

from helios_cli.errors import InputError
from helios_cli.recipe import values
from helios_cli.recipe.lora import MAX_LORAS, MAX_WEIGHT
from helios_cli.recipe.problems import Place
from helios_cli.recipe.prompts import has_words
from helios_cli.recipe.sound import MAX_FADE_SECONDS, SOUND_KEYS, Fit

VERSION = 1
MAX_SHOTS = 10_000
MAX_PROMPT = 20_000
"""Characters of a prompt; the models read 512 tokens, about a tenth of this."""

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that no prompt or name may hold: controls other than tab and line ends."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _plain(text: str) -> str:
    if bad := CONTROL.search(text):
        raise ValueError(f"contains the control character U+{ord(bad[0]):04X}: remove it")
    return text


def _prompt(text: str) -> str:
    if not has_words(_plain(text)):
        raise ValueError("is empty: say what the shot shows")
    return text


def _path(text: str) -> str:
    """Check a path on this machine. A scheme would make ffmpeg open something else; one letter is a Windows drive."""
    if not _plain(text).strip():
        raise ValueError("is empty: name a file, or remove the key")
    if scheme := _URL.match(text):
        raise ValueError(f"begins with `{scheme[0]}`: only local files are read, so download it first")
    return text


def _parsed_by(parse: Callable[[object], Any]) -> BeforeValidator:
    """A validator that raises what Pydantic collects, which is ValueErrors only."""

    def read(value: object) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise ValueError(f"{error.message}: {error.hint}" if error.hint else error.message) from error

    return BeforeValidator(read)


_SECONDS = {"type": "number", "exclusiveMinimum": 0, "maximum": values.MAX_SECONDS}
_STEPS = {"type": "integer", "minimum": 1}
_STEP_FORMS = [{"type": "array", "items": _STEPS, "minItems": 1}, _STEPS]

Duration = Annotated[
    float, _parsed_by(values.parse_duration), WithJsonSchema({"anyOf": [_SECONDS, {"type": "string"}]})
]
Size = Annotated[
    tuple[int, int],
    _parsed_by(values.parse_size),
    PlainSerializer(lambda size: f"{size[0]}x{size[1]}", return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+[x×][0-9]+$"}),
]
Steps = Annotated[
    tuple[int, ...],
    _parsed_by(values.parse_steps),
    WithJsonSchema({"anyOf": [*_STEP_FORMS, {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$"}]}),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_plain)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_prompt)]
LocalPath = Annotated[str, Field(max_length=4096), AfterValidator(_path)]
Seed = Annotated[Whole, Field(ge=0, le=values.MAX_SEED)]


def _key(description: str, example: object, default: object = None) -> Any:
    return Field(default, description=description, examples=[example])


class Shot(BaseModel):
    """One stretch of the film under one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    prompt: Prompt = _key("What the shot shows.", "A fishing boat leaves the harbour.", ...)
    seconds: Duration | None = _key(
        "Length: a number of seconds, or text such as 1m30s or 0:05. Shots without a length share the time that is "
        "left of the film.",
        20,
    )
    transition: values.Transition = _key(
        "How the shot begins: blend moves gradually from the previous prompt, switch changes the prompt at once, cut "
        "starts with an empty history.",
        "cut",
        "blend",
    )
    blend_seconds: Duration = _key("How long a blend takes, from the shot's start.", 4, values.DEFAULT_BLEND_SECONDS)
    seed: Seed | None = _key("Random seed, on the first shot or with a cut. Default: the film's seed.", 8)
    image: LocalPath | None = _key(
        "Picture to start from, on the first shot or with a cut; relative to the recipe.", "sea.png"
    )
    video: LocalPath | None = _key("Clip to continue, on the first shot only; relative to the recipe.", "sea.mp4")


class LoraEntry(BaseModel):
    """A LoRA file of the film."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    path: LocalPath = _key(
        "File, relative to the recipe, or owner/name[/file.safetensors] on the Hub.", "style.safetensors", ...
    )
    weight: Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)] = _key("Strength of the LoRA.", 0.8, 1.0)


class Recipe(BaseModel):
    """A film as a list of shots and the settings that they share."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, title="helios recipe")

    version: Literal[1] = _key("Version of this format.", 1, VERSION)
    title: Annotated[Text, Field(max_length=200)] | None = _key("Name of the film.", "Harbour at dawn")
    style: Text | None = _key("Words appended to every shot's prompt.", "35mm film, soft light")
    model: Annotated[Text, Field(min_length=1, max_length=500)] | None = _key(
        "auto, tiny, distilled, mid, base, a Hub id or a local folder.", "distilled"
    )
    fps: Annotated[Number, Field(ge=1, le=values.MAX_FPS)] | None = _key("Frames per second. Default 24.", 24)
    size: Size | None = _key("WIDTHxHEIGHT in pixels. Default: the model's native size.", "640x384")
    seconds: Duration | None = _key("Length of the whole film. One of seconds, minutes and frames.", 60)
    minutes: Annotated[Number, Field(gt=0, le=values.MAX_SECONDS / 60)] | None = _key(
        "Length of the whole film in minutes.", 3
    )
    frames: Annotated[Whole, Field(ge=1, le=values.MAX_FRAMES)] | None = _key(
        "Length of the whole film in frames.", 1440
    )
    seed: Seed | None = _key("Random seed of the film. Default 42.", 7)
    negative: Text | None = _key("Negative prompt, for models that use guidance.", "subtitles, watermark")
    steps: Steps | None = _key("Solver steps by stage. Default: the model's preset.", "2,2,2")
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = _key("Guidance scale. Default: the model's preset.", 5.0)
    lora: Annotated[tuple[LoraEntry, ...], Field(max_length=MAX_LORAS)] | None = _key(
        "LoRA files that are folded into the model, for the whole film.", [{"path": "style.safetensors", "weight": 0.8}]
    )
    audio: LocalPath | None = _key("Sound file under the film, relative to the recipe.", "music.flac")
    audio_fit: Fit | None = _key(
        "How the sound is fitted: trim cuts it at the film's end, loop repeats it up to there, pad keeps it whole. "
        "Silence follows a shorter one. Default trim.",
        "loop",
    )
    audio_fade: Annotated[Number, Field(ge=0, le=MAX_FADE_SECONDS)] | None = _key(
        "Seconds in which the sound fades out where it is cut. Default 0.5.", 0.5
    )
    shots: tuple[Shot, ...] = Field(
        alias="shot", max_length=MAX_SHOTS, description="The shots, in order.", json_schema_extra={"minItems": 1}
    )

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        """Check the keys one by one and against each other, and raise all errors together."""
        errors = [
            InitErrorDetails(type="value_error", loc=place, input=value, ctx={"error": ValueError(message)})
            for place, value, message in (_clashes(data) if isinstance(data, Mapping) else ())
        ]
        try:
            recipe = handler(data)
        except ValidationError as error:
            for e in error.errors(include_url=False):
                errors.append(InitErrorDetails(type=e["type"], loc=e["loc"], input=e["input"], ctx=e.get("ctx", {})))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return recipe

    def to_dict(self) -> dict:
        """Return plain values under the keys of a recipe file, without those that were never given."""
        written = self.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True)
        return {"version": VERSION, **json.loads(written, parse_float=_number)}


def _number(text: str) -> float:
    """`20.0` as `20`, as a person would have written it."""
    return int(float(text)) if float(text).is_integer() else float(text)


def json_schema() -> dict:
    """Return the JSON Schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema(by_alias=True, schema_generator=_NoNulls)
    pairs = [("seconds", "minutes"), ("seconds", "frames"), ("minutes", "frames")]
    schema["allOf"] = [{"not": {"required": list(pair)}} for pair in pairs]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _NoNulls(GenerateJsonSchema):
    """An optional key may be absent, but is never null."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        has_none = schema.get("default") is None
        return self.generate_inner(schema["schema"]) if has_none else super().default_schema(schema)


def _clashes(film: Mapping) -> Iterator[tuple[Place, object, str]]:
    """Yield place, value and message of each fault that no key shows by itself."""
    yield from _empty_keys(film, ())
    lengths = [key for key in values.LENGTH_KEYS if film.get(key) is not None]
    for key in lengths[1:]:
        yield (key,), film[key], f"`{lengths[0]}` gives the film's length already: keep one of the two"
    if film.get("audio") is None:
        fits = (key for key in SOUND_KEYS[1:] if film.get(key) is not None)
        yield from (((key,), film[key], "fits no sound: name a file with `audio`, or remove the key") for key in fits)
    shots = film.get("shot")
    if shots in ([], ()):  # `min_length` would count broken shots as none
        yield ("shot",), shots, "the film has no shots"
    for index, shot in enumerate(shots if isinstance(shots, list | tuple) else ()):
        keys = shot.model_dump(exclude_unset=True) if isinstance(shot, Shot) else shot
        if isinstance(keys, Mapping):
            yield from _empty_keys(keys, ("shot", index))
            filled = {key: value for key, value in keys.items() if value is not None}
            yield from ((("shot", index, key), filled[key], message) for key, message in _shot_clashes(filled, index))


def _shot_clashes(keys: Mapping, index: int) -> Iterator[tuple[str, str]]:
    transition = keys.get("transition", "blend")
    if index > 0 and transition in ("blend", "switch"):
        message = "only the first shot and a cut start afresh: add the transition cut, or remove the key"
        yield from ((key, message) for key in ("seed", "image") if key in keys)
    if index > 0 and "video" in keys:
        yield "video", "only the first shot can continue a clip: remove the key"
    if "image" in keys and "video" in keys:
        yield "video", "the shot starts from `image` already: keep one of the two"
    if transition in ("switch", "cut") and "blend_seconds" in keys:
        yield "blend_seconds", f"a {transition} has no blend: remove the key, or the transition"


def _empty_keys(table: Mapping, place: Place) -> Iterator[tuple[Place, object, str]]:
    for key, value in table.items():
        if value is None and isinstance(key, str):
            yield (*place, key), None, "has no value: give one, or remove the key"
