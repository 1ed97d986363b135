"""Bodies of requests to items: the superset of OpenAI's embeddings that other servers' clients send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from ..items import ImageItem, Item, TextItem
from .failures import RequestError

Modality: TypeAlias = Literal["auto", "text", "image"]


class Address(msgspec.Struct, frozen=True):
    """An image that is to be fetched."""

    url: str


class Part(msgspec.Struct):
    """Text or an image of a chat message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Address | str | None = None


class Message(msgspec.Struct):
    """A chat message, of which each part is an input."""

    content: str | list[Part]
    role: str = "user"


class InputObject(msgspec.Struct):
    """An input that says its kind: exactly one of the fields.

    Attributes:
        text: a text.
        image: a data URI, base64, or a URL.
        url: a URL of an image.
        bytes: an image in base64.
    """

    text: str | None = None
    image: str | None = None
    url: str | None = None
    bytes: str | None = None


#: Numbers are tokens of another tokenizer, and refused with a sentence of their own.
Input: TypeAlias = str | InputObject | int | list[int]


InputSource: TypeAlias = str | InputObject


class ImageOptions(msgspec.Struct):
    """Settings that all requests with images take.

    Attributes:
        max_num_patches: patches that every image is resized to; null lets the model choose.
        exif_transpose: turn images upright by their EXIF orientation; null does as the model's reference does.
    """

    max_num_patches: int | None = None
    exif_transpose: bool | None = None


class EmbeddingsRequest(ImageOptions):
    """Inputs to embed. Keys that are not listed are ignored, because clients add their own.

    Attributes:
        input: one input or a list; a string that begins with ``data:image/`` is an image.
        messages: chat messages in place of ``input``.
        model: a served name; may be left out.
        modality: ``auto``, or what strings are: ``text`` or ``image``; one for all, or one for each input.
        encoding_format: ``float`` or ``base64`` (float32, little-endian).
        dimensions: the model's own, or left out.
        walk_type: kind of the texts: ``short``, ``box`` or ``long``.
        truncate: ``end`` cuts a text that is too long, ``error`` refuses it.
        on_error: ``raise`` refuses the request for a bad input, ``null`` answers null in its place.
    """

    input: str | InputObject | list[Input] | msgspec.UnsetType = msgspec.UNSET
    messages: list[Message] | msgspec.UnsetType = msgspec.UNSET
    model: str | None = None
    modality: Modality | list[Modality] = "auto"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    walk_type: str = "short"
    truncate: Literal["end", "error"] = "end"
    on_error: Literal["raise", "null"] = "raise"


class Remote(msgspec.Struct, frozen=True):
    """An image whose bytes are to be fetched first."""

    url: str
    item: ImageItem


class Base64(msgspec.Struct, frozen=True):
    """An image whose bytes are to be decoded first, which takes a millisecond a megabyte."""

    data: str
    item: ImageItem

    def decode(self) -> ImageItem | RequestError:
        """The image, or the reason why there is none."""
        try:
            # As strict as the standard library's decoder and seven times as fast. Neither lets other threads run.
            return msgspec.structs.replace(self.item, source=msgspec.convert(self.data, bytes))
        except msgspec.ValidationError:
            return RequestError(
                f"{self.item.name} is neither a data URI, nor base64, nor a URL; encode the image's file in base64.",
                "image_damaged",
            )


#: An input that is ready, one that is to be fetched or decoded, or the reason why it is neither.
Parsed: TypeAlias = Item | Remote | Base64 | RequestError


def parse(request: EmbeddingsRequest, uploads: Sequence[bytes] = ()) -> list[Parsed]:
    """The inputs of a request in their order, uploads last.

    Raises:
        RequestError: the request has none, or is not meant for this kind of server.
    """
    given = _inputs(request)
    if request.modality != "auto" and isinstance(request.modality, list) and len(request.modality) != len(given):
        raise RequestError(
            f"modality has {len(request.modality)} entries and input has {len(given)}; give one for each input.",
            param="modality",
        )
    kinds = request.modality if isinstance(request.modality, list) else [request.modality] * len(given)
    parsed = [
        _parse(each, kind, request, f"input {index}")
        for index, (each, kind) in enumerate(zip(given, kinds, strict=True))
    ]
    for data in uploads:
        parsed.append(_image(data, request, f"input {len(parsed)}"))
    if not parsed:
        raise RequestError("the request has no input; give texts or images in 'input'.", param="input")
    return parsed


def image(source: str | InputObject, options: ImageOptions, name: str) -> Remote | Base64 | RequestError:
    """An image that is given by a data URI, by base64, or by a URL."""
    if isinstance(source, InputObject):
        if source.text is not None:
            return RequestError(f"{name} is a text; give an image.")
        return _object(source, options, name)
    if source.startswith(("http://", "https://")):
        return Remote(source, _image(b"", options, name))
    data = source.partition(",")[2] if source.startswith("data:") else source
    return Base64(data, _image(b"", options, name))


def _inputs(request: EmbeddingsRequest) -> list[Input]:
    if request.messages is not msgspec.UNSET:
        if request.input is not msgspec.UNSET:
            raise RequestError("the request has both 'input' and 'messages'; give one of them.", param="messages")
        return [each for message in request.messages for each in parts(message)]
    if request.input is msgspec.UNSET:
        return []
    given: list[Input] = list(request.input) if isinstance(request.input, list) else [request.input]
    if any(isinstance(each, (int, list)) for each in given):
        raise RequestError(
            "input holds token numbers, which are of another model's tokenizer; send texts (in LangChain set "
            "check_embedding_ctx_length=False).",
            "tokens_refused",
            "input",
        )
    return given


def parts(message: Message) -> list[Input]:
    """The inputs of a message."""
    if isinstance(message.content, str):
        return [message.content]
    found: list[Input] = []
    for part in message.content:
        if part.type == "text":
            found.append(InputObject(text=part.text))
        else:
            url = part.image_url.url if isinstance(part.image_url, Address) else part.image_url
            found.append(InputObject(image=url))
    return found


def _parse(given: Input, kind: Modality, request: EmbeddingsRequest, name: str) -> Parsed:
    if isinstance(given, InputObject):
        if given.text is not None and (given.image, given.url, given.bytes) == (None, None, None):
            return TextItem(given.text, request.walk_type)
        return _object(given, request, name)
    assert isinstance(given, str)
    if kind == "image" or (kind == "auto" and given.startswith("data:image/")):
        return image(given, request, name)
    return TextItem(given, request.walk_type)


def _object(given: InputObject, options: ImageOptions, name: str) -> Remote | Base64 | RequestError:
    fields = [(field, value) for field in given.__struct_fields__ if (value := getattr(given, field)) is not None]
    if len(fields) != 1:
        which = " and ".join(field for field, _ in fields) or "none"
        return RequestError(f"{name} has {which} of text, image, url and bytes; give exactly one.")
    ((field, value),) = fields
    if field == "url" and not value.startswith(("http://", "https://")):
        return RequestError(f"{name} has a url that is not http or https; send the image's bytes instead.")
    return image(value, options, name)


def _image(data: bytes, options: ImageOptions, name: str) -> ImageItem:
    return ImageItem(data, options.max_num_patches, options.exif_transpose, name)
