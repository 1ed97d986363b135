"""Embedding clients of other libraries, which talk to the server as if it were OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.testing import assert_allclose

from fgclip_rt.model import Model, load
from http_server import NAME, Server, end, start

TEXTS = ["a red star", "一只黑猫", "a photo of the sea"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = start("--alias", "text-embedding-3-small")
    yield made
    end(made)


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NAME)


@pytest.fixture(scope="module")
def expected(model: Model) -> np.ndarray[Any, Any]:
    return model.embed_texts(TEXTS)


def test_langchains_client(url: str, expected: np.ndarray[Any, Any]) -> None:
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(model=NAME, base_url=url, api_key="none", check_embedding_ctx_length=False)
    assert_allclose(client.embed_documents(TEXTS), expected, atol=1e-6)
    assert_allclose(client.embed_query(TEXTS[1]), expected[1], atol=1e-6)
    assert_allclose(asyncio.run(client.aembed_documents(TEXTS)), expected, atol=1e-6)
    assert len(client.embed_documents([f"text {number}" for number in range(1500)])) == 1500


def test_langchains_client_is_told_why_its_tokens_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiktoken
    from langchain_openai import OpenAIEmbeddings

    class Tokens:
        """Stands for OpenAI's tokenizer, whose vocabulary the client would download."""

        def encode(self, text: str, **_: Any) -> list[int]:
            return list(text.encode())

        encode_ordinary = encode

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: Tokens())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: Tokens())
    client = OpenAIEmbeddings(model=NAME, base_url=url, api_key="none")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_documents(TEXTS)


def test_llamaindexs_client(url: str, expected: np.ndarray[Any, Any]) -> None:
    from llama_index.embeddings.openai import OpenAIEmbedding

    # `model` is one of OpenAI's names; `model_name` is what is sent.
    client = OpenAIEmbedding(model_name=NAME, api_base=url, api_key="none")
    assert_allclose(client.get_text_embedding_batch(TEXTS), expected, atol=1e-6)
    assert_allclose(client.get_query_embedding(TEXTS[0]), expected[0], atol=1e-6)
    assert_allclose(asyncio.run(client.aget_text_embedding_batch(TEXTS)), expected, atol=1e-6)


def test_haystacks_embedders(url: str, expected: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options: dict[str, Any] = {"model": NAME, "api_base_url": url, "api_key": Secret.from_token("none")}
    documents = [Document(content=text) for text in TEXTS]
    found = OpenAIDocumentEmbedder(**options, progress_bar=False).run(documents)["documents"]
    assert_allclose([document.embedding for document in found], expected, atol=1e-6)
    assert_allclose(OpenAITextEmbedder(**options).run(TEXTS[0])["embedding"], expected[0], atol=1e-6)


def test_a_client_that_knows_only_openais_names_uses_an_alias(url: str, expected: np.ndarray[Any, Any]) -> None:
    from langchain_openai import OpenAIEmbeddings

    client = OpenAIEmbeddings(
        model="text-embedding-3-small", base_url=url, api_key="none", check_embedding_ctx_length=False
    )
    assert_allclose(client.embed_documents(TEXTS), expected, atol=1e-6)
