"""Our classes in the libraries that they are made for: what the library stores and finds are the model's vectors."""

from __future__ import annotations

import asyncio
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from fgclip_rt import integrations
from fgclip_rt.errors import ArgumentError, BundleError, ImageError, MissingDependencyError
from fgclip_rt.integrations import Encoder
from fgclip_rt.integrations.inputs import open_model
from fgclip_rt.model import Model, load
from fgclip_rt.pocket.scenes import draw, make_scene
from helpers import another_export, another_space

NAME = "fg-clip2-pocket"
TEXTS = ["a red star", "一只黑猫"]


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of two images."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{seed}.png" for seed in (21, 22)]
    for path in paths:
        draw(make_scene(int(path.stem))).resize((200, 120)).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def images(model: Model, photos: list[str]) -> np.ndarray[Any, Any]:
    return model.embed_images(photos)


@pytest.fixture(scope="module")
def texts(model: Model) -> np.ndarray[Any, Any]:
    return model.embed_texts(TEXTS)


@pytest.fixture
def other_bundle(tmp_path: Path, model: Model) -> Path:
    """A bundle of another space."""
    return another_space(model.bundle.path, tmp_path / "other")


def test_langchains_embeddings_are_the_models(
    model: Model, photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    from langchain_core.vectorstores import InMemoryVectorStore

    made = integrations.LangChainEmbeddings(model)
    assert_allclose(made.embed_documents(TEXTS), texts, atol=1e-6)
    assert_allclose(asyncio.run(made.aembed_query(TEXTS[1])), texts[1], atol=1e-6)
    assert_allclose(made.embed_image(photos), images, atol=1e-6)
    assert made.embed_documents([]) == []
    boxes = integrations.LangChainEmbeddings(NAME, walk_type="box")
    assert_allclose(boxes.embed_query(TEXTS[0]), model.embed_texts(TEXTS[:1], "box")[0], atol=1e-6)
    store = InMemoryVectorStore(made)
    store.add_texts([*TEXTS, "a photo of the sea"])
    assert store.similarity_search(TEXTS[1], k=1)[0].page_content == TEXTS[1]


def test_llamaindexs_embedding_is_the_models(
    model: Model, photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    made: BaseEmbedding = integrations.LlamaIndexEmbedding(model)
    assert made.model_name == NAME
    assert_allclose(made.get_text_embedding_batch(TEXTS), texts, atol=1e-6)
    assert_allclose(made.get_query_embedding(TEXTS[0]), texts[0], atol=1e-6)
    assert_allclose(asyncio.run(made.aget_text_embedding_batch(TEXTS)), texts, atol=1e-6)
    assert_allclose(asyncio.run(made.aget_query_embedding(TEXTS[1])), texts[1], atol=1e-6)
    assert_allclose(made.get_image_embedding_batch(photos), images, atol=1e-6)
    assert_allclose(made.get_image_embedding(BytesIO(Path(photos[0]).read_bytes())), images[0], atol=1e-6)
    assert_allclose(asyncio.run(made.aget_image_embedding_batch(photos)), images, atol=1e-6)
    assert_allclose(asyncio.run(made.aget_image_embedding(photos[1])), images[1], atol=1e-6)
    boxes = integrations.LlamaIndexEmbedding(NAME, walk_type="box")
    assert_allclose(boxes.get_text_embedding(TEXTS[0]), model.embed_texts(TEXTS[:1], "box")[0], atol=1e-6)


def test_lancedb_finds_images_by_texts_and_by_images(
    tmp_path: Path, photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    import lancedb
    from lancedb.pydantic import LanceModel, Vector

    function = integrations.LanceDBFunction.create(bundle=NAME)
    schema = type(
        "Photo",
        (LanceModel,),
        {
            "__annotations__": {"path": str, "vector": Vector(function.ndims())},
            "path": function.SourceField(),
            "vector": function.VectorField(),
        },
    )
    table = lancedb.connect(tmp_path).create_table("photos", schema=schema)
    table.add([{"path": photo} for photo in photos])
    rows = table.to_arrow()
    assert_allclose(np.stack(rows["vector"].to_pylist()), images, atol=1e-6)
    # Opened again, it makes its function from what it has kept.
    table = lancedb.connect(tmp_path).open_table("photos")
    expected = photos[int(np.argmax(images @ texts[0]))]
    assert table.search(TEXTS[0]).metric("cosine").limit(1).to_list()[0]["path"] == expected
    assert table.search(Image.open(photos[1])).metric("cosine").limit(1).to_list()[0]["path"] == photos[1]


def test_lancedbs_function_takes_paths_bytes_and_texts(
    photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    create = integrations.LanceDBFunction.create
    data = [Path(photo).read_bytes() for photo in photos]
    assert_allclose(create(bundle=NAME).compute_source_embeddings(data), images, atol=1e-6)
    assert_allclose(create(bundle=NAME).compute_source_embeddings(data[0]), images[:1], atol=1e-6)
    assert_allclose(create(bundle=NAME, source="text").compute_source_embeddings(TEXTS), texts, atol=1e-6)


def test_lancedbs_function_stops_at_a_bad_image_or_leaves_it_out(
    photos: list[str], images: np.ndarray[Any, Any]
) -> None:
    rows = [b"no image", photos[1]]
    create = integrations.LanceDBFunction.create
    with pytest.raises(ImageError, match="image 0"):
        create(bundle=NAME).compute_source_embeddings(rows)
    # LanceDB calls it so. By itself it would try seven times, for minutes.
    with pytest.raises(Exception, match=r"\(0\) exceeded.*image 0"):
        create(bundle=NAME).compute_source_embeddings_with_retry(rows)
    missing, found = create(bundle=NAME, on_error="skip").compute_source_embeddings(rows)
    assert missing is None
    assert_allclose(found, images[1], atol=1e-6)
    texts = create(bundle=NAME, source="text", on_error="skip").compute_source_embeddings(["\ud800", "a"])
    assert [vector is None for vector in texts] == [True, False]


def test_lancedb_refuses_a_table_of_another_space(other_bundle: Path, model: Model, tmp_path: Path) -> None:
    kept = integrations.LanceDBFunction.create(bundle=NAME).safe_model_dump()
    assert integrations.LanceDBFunction.create(**kept).ndims() > 0
    exported = another_export(model.bundle.path, tmp_path / "exported")
    assert integrations.LanceDBFunction.create(**{**kept, "bundle": str(exported)}).ndims() > 0
    # An earlier version kept no fingerprint, so that only the bundle itself will do.
    with pytest.raises(BundleError, match="the table holds vectors"):
        integrations.LanceDBFunction(**{**kept, "bundle": str(exported), "space_sha256": None})
    with pytest.raises(BundleError, match="the table holds vectors") as refused:
        integrations.LanceDBFunction.create(**{**kept, "bundle": str(other_bundle)})
    assert refused.value.code == "bundle_replaced"


def test_chroma_keeps_texts_and_images_in_one_collection(
    tmp_path: Path, photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    chromadb = pytest.importorskip("chromadb", reason="chromadb is an extra of its own: pip install '.[chroma]'")
    settings = chromadb.config.Settings(anonymized_telemetry=False)
    client = chromadb.PersistentClient(str(tmp_path), settings=settings)
    function = integrations.ChromaFunction(NAME)
    assert function.build_from_config(function.get_config()).get_config() == function.get_config()
    collection = client.create_collection("photos", embedding_function=function)
    assert collection.configuration["hnsw"]["space"] == "cosine"
    collection.add(ids=["t0", "t1"], documents=TEXTS)
    # Chroma's loader gives transparent and greyscale images as they are.
    arrays = [np.array(Image.open(photo).convert("RGBA")) for photo in photos]
    collection.add(ids=["i0", "i1"], images=arrays)
    found = collection.get(["t0", "t1", "i0", "i1"], include=["embeddings"])
    vectors = dict(zip(found["ids"], found["embeddings"], strict=True))
    assert_allclose([vectors["t0"], vectors["t1"], vectors["i0"], vectors["i1"]], [*texts, *images], atol=1e-6)
    again = chromadb.PersistentClient(str(tmp_path), settings=settings).get_collection("photos")
    assert again.query(query_images=arrays[1:], n_results=1)["ids"] == [["i1"]]
    assert again.query(query_texts=TEXTS[1:], n_results=1)["ids"] == [["t1"]]


def test_chroma_refuses_a_collection_of_another_bundle(other_bundle: Path) -> None:
    pytest.importorskip("chromadb", reason="chromadb is an extra of its own: pip install '.[chroma]'")
    kept = integrations.ChromaFunction(NAME).get_config()
    with pytest.raises(BundleError, match="the collection holds vectors"):
        integrations.ChromaFunction.build_from_config({**kept, "bundle": str(other_bundle)})


def test_an_encoder_encodes_each_kind_of_input_in_its_place(
    model: Model, photos: list[str], images: np.ndarray[Any, Any], texts: np.ndarray[Any, Any]
) -> None:
    encoder = Encoder(model)
    photo = Image.open(photos[0])
    mixed = [photo, TEXTS[0], Path(photos[1]), {"text": TEXTS[1]}, {"image": photos[1]}, np.asarray(photo)]
    expected = [images[0], texts[0], images[1], texts[1], images[1], images[0]]
    assert_allclose(encoder.encode(mixed, normalize_embeddings=True, batch_size=2), expected, atol=1e-5)
    assert_array_equal(encoder.encode(TEXTS), model.embed_texts(TEXTS, normalize=False))
    assert_array_equal(encoder.encode(np.array(TEXTS)), encoder.encode(TEXTS))
    for one in (TEXTS[0], photo, np.asarray(photo), {"text": "a"}):
        assert encoder.encode(one).shape == (model.dim,)
    listed = encoder.encode_query(TEXTS, convert_to_numpy=False, show_progress_bar=True)
    assert isinstance(listed, list)
    assert_array_equal(listed, encoder.encode_document(TEXTS))
    assert encoder.encode([]).shape == (0, model.dim)
    assert encoder.get_sentence_embedding_dimension() == encoder.get_embedding_dimension() == model.dim
    assert_allclose(encoder.similarity(encoder.encode(TEXTS), images), texts @ images.T, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"prompt": "query: "}, "write it into the texts"),
        ({"prompt_name": "query"}, "prompts"),
        ({"convert_to_tensor": True}, "torch.from_numpy"),
        ({"truncate_dim": 64}, "leave it out"),
        ({"precision": "int8"}, "quantize"),
        ({"device": "cuda"}, "loaded"),
        ({"tsak": "retrieval"}, "'tsak'"),
    ],
)
def test_an_encoder_refuses_arguments_that_it_cannot_honour(model: Model, options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ArgumentError, match=remedy):
        Encoder(model).encode(TEXTS, **options)


def test_an_encoder_takes_arguments_at_their_neutral_values(model: Model) -> None:
    neutral = {"prompt": None, "output_value": "sentence_embedding", "convert_to_tensor": False, "truncate_dim": None}
    assert len(Encoder(model).encode(TEXTS, **neutral)) == 2


@pytest.mark.parametrize("given", [{"text": "a", "image": "b"}, {}, {"audio": b"a"}, {"text": 3}])
def test_an_encoder_joins_no_text_with_an_image(model: Model, given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="'text' or an 'image'"):
        Encoder(model).encode([given])


def test_a_bundle_is_loaded_once_while_it_is_in_use(model: Model) -> None:
    first = open_model(NAME)
    assert open_model(NAME) is first
    assert open_model(Path(NAME)) is first
    assert open_model(model) is model


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("ChromaFunction", "chromadb", "chromadb"),
        ("LanceDBFunction", "lancedb", "lancedb"),
        ("LangChainEmbeddings", "langchain_core", "langchain-core"),
        ("LlamaIndexEmbedding", "llama_index", "llama-index-core"),
    ],
)
def test_a_missing_library_is_named(name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, module, None)
    home = f"fgclip_rt.integrations.{integrations._HOMES[name][0].removeprefix('.')}"  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, home, raising=False)
    with pytest.raises(MissingDependencyError, match=rf"{name} needs the package {module}.*pip install {package}\."):
        getattr(integrations, name)


def test_a_name_that_is_none_is_no_attribute() -> None:
    assert not hasattr(integrations, "Langchain")
    assert set(integrations.__all__) <= set(dir(integrations))
