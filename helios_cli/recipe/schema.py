"""The recipe: a film written down. One schema for TOML, YAML and JSON; every other source becomes one."""

from __future__ import annotations

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
from pydantic_core import InitErrorDetails, PydanticCustomError

from helios_cli.errors import InputError
from helios_cli.recipe.prompts import has_words
from helios_cli.recipe.values import (
    DEFAULT_BLEND_SECONDS,
    LENGTH_KEYS,
    MAX_FPS,
    MAX_FRAMES,
    MAX_SECONDS,
    MAX_SEED,
    Transition,
    parse_duration,
    parse_size,
    parse_steps,
)

VERSION = 1
MAX_SHOTS = 10_000
MAX_PROMPT = 20_000
"""Characters of a prompt; the models read 512 tokens, about a tenth of this."""

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that no prompt or name may hold: controls other than tab and line ends."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def _plain(text: str) -> str:
    if bad := CONTROL.search(text):
        raise ValueError(f"holds the control character U+{ord(bad[0]):04X}: remove it")
    return text


def _prompt(text: str) -> str:
    if not has_words(_plain(text)):
        raise ValueError("is empty: say what the shot shows")
    return text


def _path(text: str) -> str:
    """A path on this machine. A scheme would make ffmpeg open something else; one letter is a Windows drive."""
    if not _plain(text).strip():
        raise ValueError("is empty: name a file, or remove the key")
    if scheme := _URL.match(text):
        raise ValueError(f"begins with `{scheme[0]}`: only files of this machine are read, so download it first")
    return text


def _reading(parse: Callable[[object], Any]) -> BeforeValidator:
    """Pydantic gathers ValueErrors only."""

    def read(value: object) -> Any:
        try:
            return parse(value)
        except InputError as error:
            raise ValueError(f"{error.message}: {error.hint}" if error.hint else error.message) from error

    return BeforeValidator(read)


Duration = Annotated[
    float,
    _reading(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS}, {"type": "string"}]},
    ),
]
Size = Annotated[
    tuple[int, int],
    _reading(lambda value: value if isinstance(value, tuple) else parse_size(value)),
    PlainSerializer(lambda size: f"{size[0]}x{size[1]}", return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+[x×][0-9]+$"}),
]
Steps = Annotated[
    tuple[int, ...],
    _reading(parse_steps),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$"},
            ]
        },
    ),
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_plain)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_prompt)]
LocalPath = Annotated[str, Field(max_length=4096), AfterValidator(_path)]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]


class Shot(BaseModel):
    """One stretch of the film under one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt = Field(description="What the shot shows.", examples=["A fishing boat leaves the harbour."])
    seconds: Duration | None = Field(
        None,
        description="Length: a number of seconds, or text such as 1m30s or 0:05. Without it the shot shares what is "
        "left of the film with the others that have none.",
        examples=[20],
    )
    transition: Transition = Field(
        "blend",
        description="How the shot begins: blend goes over from the previous prompt, switch changes the prompt at once, "
        "cut starts with an empty memory.",
        examples=["cut"],
    )
    blend_seconds: Duration = Field(
        DEFAULT_BLEND_SECONDS,
        description="How long a blend takes, from the shot's start.",
        examples=[4],
    )
    seed: Seed | None = Field(
        None,
        description="Seed of the generator, on the first shot or with a cut. Default: the film's seed.",
        examples=[8],
    )
    image: LocalPath | None = Field(
        None,
        description="Picture to start from, on the first shot or with a cut; relative to the recipe.",
        examples=["sea.png"],
    )
    video: LocalPath | None = Field(
        None, description="Clip to continue, on the first shot only; relative to the recipe.", examples=["sea.mp4"]
    )


class Recipe(BaseModel):
    """A film as a list of shots and the settings that they share."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="helios recipe")

    version: Literal[1] = Field(VERSION, description="Version of this format.", examples=[1])
    title: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="Name of the film.", examples=["Harbour at dawn"]
    )
    style: Text | None = Field(
        None, description="Words appended to every shot's prompt.", examples=["35mm film, soft light"]
    )
    model: Annotated[Text, Field(min_length=1, max_length=500)] | None = Field(
        None, description="auto, tiny, distilled, mid, base, a Hub id or a local folder.", examples=["distilled"]
    )
    fps: Annotated[Number, Field(ge=1, le=MAX_FPS)] | None = Field(
        None, description="Frames a second. Default 24.", examples=[24]
    )
    size: Size | None = Field(
        None, description="WIDTHxHEIGHT in pixels. Default: the model's native size.", examples=["640x384"]
    )
    seconds: Duration | None = Field(
        None, description="Length of the whole film. One of seconds, minutes and frames.", examples=[60]
    )
    minutes: Annotated[Number, Field(gt=0, le=MAX_SECONDS / 60)] | None = Field(
        None, description="Length of the whole film in minutes.", examples=[3]
    )
    frames: Annotated[Whole, Field(ge=1, le=MAX_FRAMES)] | None = Field(
        None, description="Length of the whole film in frames.", examples=[1440]
    )
    seed: Seed | None = Field(None, description="Seed of the film. Default 42.", examples=[7])
    negative: Text | None = Field(
        None, description="Negative prompt, for models that use guidance.", examples=["subtitles, watermark"]
    )
    steps: Steps | None = Field(
        None, description="Solver steps by stage. Default: the model's preset.", examples=["2,2,2"]
    )
    guidance: Annotated[Number, Field(ge=0, le=100)] | None = Field(
        None, description="Guidance scale. Default: the model's preset.", examples=[5.0]
    )
    shots: tuple[Shot, ...] = Field(
        alias="shot",
        max_length=MAX_SHOTS,
        description="The shots, in the film's order.",
        json_schema_extra={"minItems": 1},
    )

    @model_validator(mode="wrap")
    @classmethod
    def _all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Recipe]) -> Recipe:
        """Check the keys one by one and against each other, and raise everything that was found together."""
        errors = list(_clashes(data)) if isinstance(data, Mapping) else []
        recipe = None
        try:
            recipe = handler(data)
        except ValidationError as error:
            found = error.errors(include_url=False)
            errors += [
                InitErrorDetails(type=e["type"], loc=e["loc"], input=e["input"], ctx=e.get("ctx", {})) for e in found
            ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return recipe

    def to_dict(self) -> dict:
        """Plain values under the keys of a recipe file, without those that were never given."""
        given = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        return {"version": VERSION, **_whole_numbers(given)}


def json_schema() -> dict:
    """The JSON Schema (draft 2020-12) of a recipe file."""
    schema = Recipe.model_json_schema(by_alias=True, schema_generator=_NoNulls)
    pairs = [("seconds", "minutes"), ("seconds", "frames"), ("minutes", "frames")]
    schema["allOf"] = [{"not": {"required": list(pair)}} for pair in pairs]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class _NoNulls(GenerateJsonSchema):
    """A key that is not needed may be absent, but is never null."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def _clashes(data: Mapping) -> Iterator[InitErrorDetails]:
    """What no key shows by itself."""
    yield from _empty_keys(data, ())
    lengths = [key for key in LENGTH_KEYS if data.get(key) is not None]
    for key in lengths[1:]:
        yield _clash((key,), data[key], f"the film's length is given by `{lengths[0]}` already: keep one of the two")
    shots = data.get("shot")
    if shots in ([], ()):  # `min_length` would count broken shots as none
        yield _clash(("shot",), shots, "the film has no shots")
    for index, shot in enumerate(shots if isinstance(shots, list | tuple) else ()):
        keys = shot.model_dump(exclude_unset=True) if isinstance(shot, Shot) else shot
        if isinstance(keys, Mapping):
            yield from _shot_clashes(keys, index)


def _shot_clashes(keys: Mapping, index: int) -> Iterator[InitErrorDetails]:
    place = ("shot", index)
    yield from _empty_keys(keys, place)
    given = {key: value for key, value in keys.items() if value is not None}
    transition = given.get("transition", "blend")
    if index > 0 and transition in ("blend", "switch"):
        message = "only the first shot and a cut start afresh: add the transition cut, or remove the key"
        for key in ("seed", "image"):
            if key in given:
                yield _clash((*place, key), given[key], message)
    if index > 0 and "video" in given:
        yield _clash((*place, "video"), given["video"], "only the first shot can continue a clip: remove the key")
    if "image" in given and "video" in given:
        yield _clash((*place, "video"), given["video"], "the shot starts from `image` already: keep one of the two")
    if transition in ("switch", "cut") and "blend_seconds" in given:
        message = f"a {transition} has no blend: remove the key, or the transition"
        yield _clash((*place, "blend_seconds"), given["blend_seconds"], message)


def _empty_keys(keys: Mapping, place: tuple) -> Iterator[InitErrorDetails]:
    for key, value in keys.items():
        if value is None and isinstance(key, str):
            yield _clash((*place, key), None, "has no value: give one, or remove the key")


def _clash(place: tuple, value: object, message: str) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError("clash", "{message}", {"message": message}), loc=place, input=value
    )


def _whole_numbers(value: Any) -> Any:
    """`20.0` as `20`, as a person would have written it."""
    if isinstance(value, dict):
        return {key: _whole_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
