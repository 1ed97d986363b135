"""A model as other libraries want it: an embedding class of LangChain, LlamaIndex, LanceDB or Chroma, and an encoder.

>>> from fgclip_rt.integrations import LangChainEmbeddings
>>> LangChainEmbeddings("bundle").embed_query("a cat")

Each class is imported when it is first used, with its library, which is not among our own dependencies.
"""

import importlib
import typing

from fgclip_rt.errors import MissingDependencyError

if typing.TYPE_CHECKING:
    from .chroma import ChromaFunction
    from .encoder import Encoder
    from .lancedb import LanceDBFunction
    from .langchain import LangChainEmbeddings
    from .llama_index import LlamaIndexEmbedding

__all__ = ["ChromaFunction", "Encoder", "LanceDBFunction", "LangChainEmbeddings", "LlamaIndexEmbedding"]

#: The module of each class, and the package that it needs, by the name that it is installed by.
_HOMES = {
    "ChromaFunction": (".chroma", "chromadb"),
    "Encoder": (".encoder", "fgclip-rt"),
    "LanceDBFunction": (".lancedb", "lancedb"),
    "LangChainEmbeddings": (".langchain", "langchain-core"),
    "LlamaIndexEmbedding": (".llama_index", "llama-index-core"),
}


# A checker reads the imports above instead, and so finds a misspelt name.
if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> typing.Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, package = _HOMES[name]
        try:
            return getattr(importlib.import_module(module, __name__), name)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{name} needs the package {error.name}, which is not installed; run pip install {package}."
            ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
