"""Tools for agents, by the Model Context Protocol: what a model sees, where, and which images are alike.

- ``sources``: the images that an agent may name.
- ``vectors``: vectors that an agent holds by a name, because its model would read 768 numbers as text.
- ``server``: the tools.
"""

from .server import add_tools, make_server
from .sources import Sources

__all__ = ["Sources", "add_tools", "make_server"]
